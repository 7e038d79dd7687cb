"""`recommend_trainable_layers`: the two rules, on models of every kind."""

import copy
import functools
import pickle

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tfkit.errors import ArgumentError, ArgumentTypeError, UnbuiltModelError
from tfkit.transfer import advice

BUILDERS = (
    models.conv_net,
    models.nested_net,
    models.deep_net,
    models.shared_net,
    models.subclassed_net,
    models.sequence_net,
    models.gated_net,
    models.root_weight_net,
    models.twins_net,
    models.hybrid_net,
    models.tied_net,
)
SAMPLES = {"small": 10, "medium": 2_000, "large": 20_000}


@functools.cache
def net(build):
    """Built once: `recommend_trainable_layers` changes nothing."""
    return build()


def chain(depth=6, **kwargs):
    """Dense layers l1, l2, … and nothing else."""
    stack = [layers.Dense(2, name=f"l{i}") for i in range(1, depth + 1)]
    return keras.Sequential([keras.Input((2,)), *stack], **kwargs)


def advise(model, n_samples=10, similarity="similar"):
    return tfkit.recommend_trainable_layers(model, n_samples=n_samples, similarity=similarity)


def learning_paths(model):
    """Paths of the layers that training can move, in model order."""
    learnable = {id(variable) for variable in model.trainable_variables}
    return [
        entry.path
        for entry in tfkit.select_layers(model, lambda _: True).entries
        if any(id(weight) in learnable for weight in entry.weights)
    ]


# --- the rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "similarity", "count"),
    [
        ("small", "similar", 1),  # a sixth of six
        ("small", "different", 2),
        ("medium", "similar", 3),
        ("medium", "different", 4),
        ("large", "similar", 6),
        ("large", "different", 6),
    ],
)
def test_the_share_of_the_depth_follows_from_size_and_similarity(size, similarity, count):
    assert advise(chain(6), SAMPLES[size], similarity) == [f"l{i}" for i in range(7 - count, 7)]


@pytest.mark.parametrize(
    ("below", "similar", "different"), [(advice.SMALL, (1, 3), (2, 4)), (advice.LARGE, (3, 6), (4, 6))]
)
def test_the_thresholds_belong_to_the_larger_size(below, similar, different):
    model = chain(6)
    for similarity, counts in (("similar", similar), ("different", different)):
        assert tuple(len(advise(model, below + more, similarity)) for more in (-1, 0)) == counts


@pytest.mark.parametrize(("depth", "count"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_a_broken_share_is_rounded_up(depth, count):
    assert len(advise(chain(depth), similarity="different")) == count


def test_normalisation_belongs_to_the_layer_before_it():
    model = net(models.subclassed_net)
    assert advise(model, 2_000) == ["block2/conv", "block2/norm", "head"]
    assert advise(model) == ["head"]


def test_normalisation_before_the_first_layer_trains_only_when_all_do():
    stack = [layers.LayerNormalization(name="norm"), layers.Dense(2, name="a"), layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((2,)), *stack])
    assert advise(model, 2_000, "similar") == ["b"]
    assert advise(model, 2_000, "different") == ["norm", "a", "b"]


def test_normalisation_at_the_end_goes_with_the_last_layer():
    stack = [layers.Dense(2, name="a"), layers.Dense(2, name="b"), layers.BatchNormalization(name="norm")]
    assert advise(keras.Sequential([keras.Input((2,)), *stack])) == ["b", "norm"]


def test_batch_normalisation_that_only_counts_is_still_included():
    norm = layers.BatchNormalization(center=False, scale=False, name="norm")
    assert advise(keras.Sequential([keras.Input((2,)), layers.Dense(2, name="a"), norm])) == ["a", "norm"]


def test_preprocessing_that_never_learns_is_left_out():
    stack = [layers.Normalization(mean=0.0, variance=1.0, name="scale"), layers.Dense(2, name="a")]
    assert advise(keras.Sequential([keras.Input((2,)), *stack]), 20_000) == ["a"]


def test_layers_without_kernels_count_where_there_are_no_others():
    stack = [layers.LayerNormalization(name=name) for name in ("a", "b", "c")]
    assert advise(keras.Sequential([keras.Input((2,)), *stack]), similarity="different") == ["c"]


def test_what_is_frozen_now_plays_no_part():
    model = chain(6)
    tfkit.configure_base_model(model, "l1")
    assert advise(model) == ["l6"]


def test_a_kernel_under_a_lora_adapter_does_not_count_as_training():
    model = chain(2)
    model.layers[1].enable_lora(1)
    tfkit.configure_base_model(model, advise(model))
    trained = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert f"{trained:.0f} of" in advise(model).reason


# --- on every kind of model ----------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    build=st.sampled_from(BUILDERS),
    fewer=st.integers(1, 30_000),
    more=st.integers(1, 30_000),
    similarity=st.sampled_from(["similar", "different"]),
)
def test_more_samples_never_train_fewer_layers(build, fewer, more, similarity):
    fewer, more = sorted((fewer, more))
    model = net(build)
    assert set(advise(model, fewer, similarity)) <= set(advise(model, more, similarity))


@settings(deadline=None, max_examples=60)
@given(build=st.sampled_from(BUILDERS), n_samples=st.integers(1, 30_000))
def test_different_data_trains_all_that_similar_data_trains(build, n_samples):
    model = net(build)
    assert set(advise(model, n_samples, "similar")) <= set(advise(model, n_samples, "different"))


@settings(deadline=None, max_examples=60)
@given(
    build=st.sampled_from(BUILDERS),
    n_samples=st.integers(1, 30_000),
    similarity=st.sampled_from(["similar", "different"]),
)
def test_what_trains_is_the_end_of_the_model(build, n_samples, similarity):
    model = net(build)
    paths = tfkit.select_layers(model, advise(model, n_samples, similarity)).paths
    assert paths
    assert list(paths) == learning_paths(model)[-len(paths) :]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_much_data_trains_every_layer(build):
    model = build()
    learnable = {variable.path for variable in model.trainable_variables}
    tfkit.configure_base_model(model, advise(model, 20_000), batch_norm="train")
    assert {variable.path for variable in model.trainable_variables} == learnable


@pytest.mark.parametrize("size", SAMPLES)
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_the_reason_counts_the_weights_that_then_train(build, size):
    model = build()
    recommendation = advise(model, SAMPLES[size], "different")
    tfkit.configure_base_model(model, recommendation)
    training = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert recommendation.reason.endswith(f" {training:,} of {model.count_params():,} weights.")


def test_a_name_that_also_stands_inside_a_nested_model_selects_the_outer_layer_only():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name="inner")
    stack = [layers.Dense(4, name="stem"), inner, layers.Dense(2, name="dense")]
    model = keras.Sequential([keras.Input((4,)), *stack])
    assert advise(model) == ["re:dense"]
    assert tfkit.select_layers(model, advise(model)).layers == (model.layers[-1],)


def test_siblings_of_one_name_train_together():
    model = net(models.twins_net)
    covered = tfkit.select_layers(model, advise(model, 2_000)).layers
    assert covered == (model.one, model.two, model.head)


# --- what comes back -----------------------------------------------------------------------------


def test_the_reason_gives_the_rule_and_its_numbers():
    assert advise(chain(6), 2_000, "different").reason == (
        "2,000 samples (medium: 1,000 to 9,999), different: the last 4 of 6 layers train, 24 of 36 weights."
    )


def test_the_reason_says_that_normalisation_is_included():
    assert (
        "the last 2 of 3 layers train, normalisation included,"
        in advise(net(models.subclassed_net), 2_000).reason
    )


def test_the_repr_is_the_list_and_the_reason_as_a_comment():
    recommendation = advise(chain(6))
    assert repr(recommendation) == f"['l6']  # {recommendation.reason}"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copy_keeps_the_reason(duplicate):
    recommendation = advise(chain(6))
    again = duplicate(recommendation)
    assert (again, again.reason) == (recommendation, recommendation.reason)


def test_a_recommendation_can_be_extended_like_a_list():
    assert [*advise(chain(6)), "l1"] == ["l6", "l1"]
    assert advise(chain(6)) + ["l1"] == ["l6", "l1"]  # noqa: RUF005


def test_the_model_is_not_changed():
    model = chain(6)
    before = [weight.copy() for weight in model.get_weights()]
    advise(model, similarity="different")
    assert len(model.trainable_variables) == 12
    expect_equal(model.get_weights(), before)


def test_numpys_whole_numbers_are_whole_numbers():
    assert advise(chain(6), np.int64(10)) == ["l6"]


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [0, -5, 2.5, 100.0, True, "many", None, float("nan")], ids=repr)
def test_samples_must_be_counted(n_samples):
    message = rf"`n_samples` must be a whole number of at least 1\. Received: n_samples={n_samples!r}"
    with pytest.raises(ArgumentError, match=message):
        advise(chain(2), n_samples)


def test_an_unknown_similarity_is_refused():
    message = r"`similarity` must be 'similar' or 'different'\. Received: similarity='close'"
    with pytest.raises(ArgumentError, match=message):
        advise(chain(2), similarity="close")


def test_an_unbuilt_model_is_refused():
    with pytest.raises(UnbuiltModelError, match=r"`model` must be built.*Received: model='raw'"):
        advise(keras.Sequential([layers.Dense(1)], name="raw"))


def test_something_that_is_no_model_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a Keras 3 model.*Received: model='net'"):
        advise("net")


@pytest.mark.parametrize("layer", [layers.Flatten(), layers.Normalization(mean=0.0, variance=1.0)])
def test_a_model_with_nothing_to_train_is_refused(layer):
    model = keras.Sequential([keras.Input((2,)), layer], name="empty")
    message = r"`model` must have layers with weights that can train\. Received: model='empty'"
    with pytest.raises(ArgumentError, match=message):
        advise(model)
