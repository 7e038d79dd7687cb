"""`configure_base_model`: what trains, what the optimizer keeps, and what the next `fit` does."""

import functools
import itertools
import types

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import tfkit
from tests import models
from tfkit.errors import ArgumentError, ArgumentTypeError, LayerNotFoundError, UnbuiltModelError

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(12, 6)).astype("float32"), RANDOM.normal(size=(12, 2)).astype("float32")
IMAGES = (3 + 2 * RANDOM.normal(size=(8, 8, 8, 3))).astype("float32")
LABELS = RANDOM.normal(size=(8, 2)).astype("float32")

OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.01, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.01),
    "nadam": lambda: optimizers.Nadam(0.01),
    "ema": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "loss_scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.01, momentum=0.9), initial_scale=8.0
    ),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1, amsgrad=True),
    "muon": lambda: optimizers.Muon(0.01),
    "multi": lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.Adam(0.01), {".*head.*": optimizers.SGD(0.01, momentum=0.9)})
    ),
}


def numbers(variables):
    """Copies of the variables' values, which later updates leave alone."""
    return [np.asarray(variable).copy() for variable in variables]


def snapshot(optimizer):
    """Name -> value of all state that the optimizer keeps for single weights."""
    scalars = {"iteration", "learning_rate", "step_counter", "dynamic_scale"}
    slots = [v for v in optimizer.variables if v.name not in scalars and "variable" not in v.name]
    return dict(zip([v.name for v in slots], numbers(slots)))


def moved_by(model, change):
    """The weights whose values `change()` altered."""
    before = numbers(model.weights)
    change()
    after = numbers(model.weights)
    return {v.path for v, old, new in zip(model.weights, before, after) if not np.array_equal(old, new)}


def fit(model, x=X, y=Y, epochs=1):
    return model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)


def steps(model, count=3):
    """Trains without the overhead of `fit`."""
    for _ in range(count):
        model.train_on_batch(X, Y)


def paths_of(variables):
    return {variable.path for variable in variables}


# --- what trains -----------------------------------------------------------------------------------

BUILDERS = (
    models.conv_net,
    models.nested_net,
    models.deep_net,
    models.shared_net,
    models.subclassed_net,
    models.sequence_net,
    models.gated_net,
)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_each_layer_can_be_the_only_one_that_trains(build):
    model = build()
    learnable = {id(v) for v in model.trainable_variables}
    selection = tfkit.select_layers(model, "*")
    for entry in selection.entries:
        tfkit.configure_base_model(model, lambda layer, one=entry.layer: layer is one, batch_norm="train")
        wanted = {id(v) for v in tfkit.select_layers(model, entry.layer).variables} & learnable
        assert {id(v) for v in model.trainable_variables} == wanted, entry.path


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_selecting_everything_trains_what_a_new_model_trains(build):
    model = build()
    learnable = paths_of(model.trainable_variables)
    tfkit.configure_base_model(model, "*", batch_norm="train")
    assert paths_of(model.trainable_variables) == learnable


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_an_empty_list_freezes_everything(build):
    model = build()
    assert tfkit.configure_base_model(model, []).trainable_variables == []


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_everything_trains_again_after_everything_was_frozen(build):
    model = build()
    learnable = paths_of(model.trainable_variables)
    tfkit.configure_base_model(model, [])
    tfkit.configure_base_model(model, "*", batch_norm="train")
    assert paths_of(model.trainable_variables) == learnable


@pytest.mark.parametrize(
    ("build", "patterns", "trained"),
    [
        (models.dense_net, "d1..d2", {"d1/kernel", "d1/bias", "d2/kernel", "d2/bias"}),
        (models.dense_net, ["*", "!d1..d2"], {"head/kernel", "head/bias"}),
        (models.deep_net, "inner", {"inner/a/kernel", "inner/a/bias", "inner/b/kernel", "inner/b/bias"}),
        (models.deep_net, "middle/inner/a", {"inner/a/kernel", "inner/a/bias"}),
        (models.gated_net, ["gate1", "!gate1/mix"], {"gate1/gain"}),
        (models.gated_net, "gate1/mix", {"gate1/mix/kernel", "gate1/mix/bias"}),
        (models.sequence_net, "mha/query", {"mha/query/kernel", "mha/query/bias"}),
    ],
)
def test_exactly_the_selected_weights_train(build, patterns, trained):
    model = tfkit.configure_base_model(build(), patterns)
    parts = [v.path.split("/") for v in model.trainable_variables]
    depth = min(trained).count("/") + 1
    assert sorted("/".join(each[-depth:]) for each in parts) == sorted(trained)


def test_a_selection_is_exact_whatever_trained_before():
    model = models.dense_net()
    for patterns, names in [("d1", ["d1"]), ("head", ["head"]), ([], []), (["d2", "d1"], ["d1", "d2"])]:
        tfkit.configure_base_model(model, patterns)
        assert [layer.name for layer in model.layers if layer.trainable_variables] == names


def test_a_composed_layers_own_weight_trains_again_after_only_a_part_trained():
    model = models.gated_net()
    learnable = paths_of(model.trainable_variables)
    tfkit.configure_base_model(model, ["mix", "head"])
    tfkit.configure_base_model(model, "*")
    assert paths_of(model.trainable_variables) == learnable


def test_a_selected_shared_layer_trains_although_all_else_in_its_containers_is_frozen():
    model = tfkit.configure_base_model(models.shared_net(), "second/shared")
    shared = model.get_layer("first").get_layer("shared")
    assert paths_of(model.trainable_variables) == paths_of(shared.weights)


def test_a_frozen_parent_does_not_hide_a_selected_layer():
    model = models.nested_net()
    model.trainable = False
    tfkit.configure_base_model(model, "wrapper/backbone/conv2")
    assert [v.path for v in model.trainable_variables] == [
        v.path for v in model.get_layer("wrapper").get_layer("backbone").get_layer("conv2").weights
    ]


def test_a_weight_of_the_root_model_itself_trains_when_everything_is_selected():
    model = tfkit.configure_base_model(models.root_weight_net(), "*")
    assert id(model.scale) in {id(v) for v in model.trainable_variables}


@pytest.mark.parametrize("compiled", [True, False])
def test_the_same_model_is_returned(compiled):
    model = models.dense_net()
    if compiled:
        model.compile("sgd", "mse")
    assert tfkit.configure_base_model(model, "head") is model


def test_configuring_changes_no_weight():
    model = models.conv_net()
    assert moved_by(model, lambda: tfkit.configure_base_model(model, "conv*", batch_norm="train")) == set()


def test_an_uncompiled_model_stays_uncompiled():
    assert not tfkit.configure_base_model(models.dense_net(), "head").compiled


def test_the_table_shows_what_trains():
    model = tfkit.configure_base_model(models.conv_net(), ["conv1", "bn1"])
    table = tfkit.layer_table(model).set_index("path")
    assert table.trainable.to_dict() == {"conv1": True, "bn1": False, "conv2": False, "head": False}


# --- batch normalization ---------------------------------------------------------------------------


def bn_state(layer):
    return numbers([layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance])


BN_MODELS = [
    (models.conv_net, lambda model: model.get_layer("bn1")),
    (models.nested_net, lambda model: model.get_layer("wrapper").get_layer("backbone").get_layer("bn1")),
    (models.subclassed_net, lambda model: model.block1.norm),
]


@pytest.mark.parametrize(("build", "find"), BN_MODELS)
@pytest.mark.parametrize("patterns", ["*", "re:.*(bn1|norm)"], ids=["everything", "itself"])
def test_frozen_batch_norm_is_untrainable_inside_a_trainable_selection(build, find, patterns):
    layer = find(tfkit.configure_base_model(build(), patterns))
    assert not layer.trainable
    assert layer.trainable_variables == []


@pytest.mark.parametrize(("build", "find"), BN_MODELS)
def test_frozen_batch_norm_computes_in_training_what_it_computes_in_inference(build, find):
    layer = find(tfkit.configure_base_model(build(), "*"))
    x = (5 + 3 * np.random.default_rng(1).normal(size=(4, 8, 8, 4))).astype("float32")
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))


@pytest.mark.parametrize(("build", "find"), BN_MODELS)
def test_frozen_batch_norm_keeps_its_state_through_fit(build, find):
    model = build()
    model.compile(optimizers.SGD(0.01), "mse", run_eagerly=True)
    tfkit.configure_base_model(model, "*")
    before = bn_state(find(model))
    fit(model, IMAGES, LABELS)
    for old, new in zip(before, bn_state(find(model))):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(("build", "find"), BN_MODELS)
def test_selected_batch_norm_learns_when_asked(build, find):
    model = build()
    model.compile(optimizers.SGD(0.01), "mse", run_eagerly=True)
    tfkit.configure_base_model(model, "*", batch_norm="train")
    before = bn_state(find(model))
    fit(model, IMAGES, LABELS)
    assert all(not np.array_equal(old, new) for old, new in zip(before, bn_state(find(model))))


def test_batch_norm_that_is_not_selected_stays_frozen_when_others_learn():
    model = models.subclassed_net()
    model.compile(optimizers.SGD(0.01), "mse")
    tfkit.configure_base_model(model, ["block2", "head"], batch_norm="train")
    moved = moved_by(model, lambda: fit(model, IMAGES, LABELS))
    assert moved == {v.path for v in [*model.block2.weights, *model.head.weights]}


def test_moving_statistics_follow_the_closed_form_when_batch_norm_trains():
    inputs = keras.Input((3,))
    norm = layers.BatchNormalization(momentum=0.75, name="norm")
    model = keras.Model(inputs, layers.Dense(1)(norm(inputs)))
    model.compile(optimizers.SGD(0.01), "mse")
    tfkit.configure_base_model(model, [])
    fit(model, X[:4, :3], Y[:4, :1])
    tfkit.configure_base_model(model, "norm", batch_norm="train")
    fit(model, X[:4, :3], Y[:4, :1])
    np.testing.assert_allclose(norm.moving_mean, 0.25 * X[:4, :3].mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, 0.75 + 0.25 * X[:4, :3].var(0), rtol=1e-5)


def test_batch_norm_freezes_again_in_a_compiled_model():
    model = models.conv_net()
    model.compile(optimizers.SGD(0.01), "mse")
    tfkit.configure_base_model(model, "*", batch_norm="train")
    fit(model, IMAGES, LABELS)
    tfkit.configure_base_model(model, "*")
    before = bn_state(model.get_layer("bn1"))
    fit(model, IMAGES, LABELS)
    for old, new in zip(before, bn_state(model.get_layer("bn1"))):
        np.testing.assert_array_equal(new, old)


def test_batch_norm_without_scale_and_offset_still_stays_in_inference_mode():
    norm = layers.BatchNormalization(center=False, scale=False, name="norm")
    model = keras.Sequential([keras.Input((6,)), norm, layers.Dense(2)])
    model.compile(optimizers.SGD(0.01), "mse")
    tfkit.configure_base_model(model, "*")
    assert moved_by(model, lambda: fit(model)) == paths_of(model.layers[-1].weights)


def test_an_unknown_batch_norm_is_refused_before_anything_changes():
    model = models.conv_net()
    message = r"`batch_norm` must be 'frozen' or 'train'\. Received: batch_norm='inference'"
    with pytest.raises(ArgumentError, match=message):
        tfkit.configure_base_model(model, [], batch_norm="inference")
    assert len(model.trainable_variables) == 8


# --- a compiled model that has trained, with every kind of optimizer --------------------------------


class Story:
    """One change of the selection on a trained model, observed before, after, and after the next fit."""

    def __init__(self, name, before, after, run_eagerly):
        self.model = models.dense_net()
        self.model.compile(OPTIMIZERS[name](), "mse", run_eagerly=run_eagerly)
        self.optimizer = self.model.optimizer
        tfkit.configure_base_model(self.model, before)
        fit(self.model)  # three batches, so that accumulators are half full
        self.before = self.observe()
        tfkit.configure_base_model(self.model, after)
        self.after = self.observe()
        self.weights = dict(zip([v.path for v in self.model.weights], numbers(self.model.weights)))
        try:
            self.moved, self.error = moved_by(self.model, lambda: fit(self.model)), None
        except ValueError as error:
            self.moved, self.error = None, error
        self.end = self.observe()

    def observe(self):
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        held = [(inner, ("_u_product", "_learning_rate", "_iterations"))]
        held += [(self.optimizer, ("step_counter", "dynamic_scale"))]
        scalars = {name: getattr(each, name, None) for each, names in held for name in names}
        return types.SimpleNamespace(
            optimizer=self.model.optimizer,
            selected=paths_of(self.model.trainable_variables),
            slots=snapshot(self.optimizer),
            tracked=[v.path for v in self.optimizer.variables],
            batches=int(inner._iterations),
            scalars={name: float(v) for name, v in scalars.items() if isinstance(v, keras.Variable)},
        )


def owner(slot, weights):
    """The weight whose state a slot is: optimizer variables carry its path in their names."""
    return next((path for path in weights if f"{path.replace('/', '_')}_" in slot), None)


CHANGES = {"freezing": ("*", ["d2", "head"]), "unfreezing": ("d2", ["d1", "d2"])}
each_story = pytest.mark.parametrize(("change", "name"), list(itertools.product(CHANGES, OPTIMIZERS)))


@functools.cache
def tell(change, name):
    """Observed once for all the tests that ask one thing each about it."""
    # Tracing takes most of the time, so only some stories show that the train step is traced again.
    traced = name in ("sgd", "adam") or (change == "freezing" and name not in ("adamw", "muon", "multi"))
    return Story(name, *CHANGES[change], run_eagerly=not traced)


@each_story
def test_the_optimizer_is_the_same_object(change, name):
    story = tell(change, name)
    assert story.after.optimizer is story.optimizer


@each_story
def test_the_count_of_iterations_is_kept(change, name):
    story = tell(change, name)
    assert story.before.batches == story.after.batches == 3


@each_story
def test_the_next_fit_counts_on(change, name):
    assert tell(change, name).end.batches == 6


@each_story
def test_the_optimizers_scalars_are_kept(change, name):
    story = tell(change, name)
    assert story.after.scalars == story.before.scalars


@each_story
def test_the_slots_of_surviving_weights_are_bit_identical(change, name):
    story = tell(change, name)
    survivors = story.before.selected & story.after.selected
    kept = {slot: value for slot, value in story.before.slots.items() if owner(slot, survivors)}
    assert any(value.any() for value in kept.values())  # zeros would prove nothing
    for slot, value in kept.items():
        np.testing.assert_array_equal(story.after.slots[slot], value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_that_join_start_with_fresh_state(name):
    story = tell("unfreezing", name)
    joined = story.after.selected - story.before.selected
    fresh = {slot: value for slot, value in story.after.slots.items() if owner(slot, joined)}
    assert fresh
    for slot, value in fresh.items():
        start = story.weights[owner(slot, joined)] if slot.endswith("average") else np.zeros(value.shape)
        np.testing.assert_array_equal(value, start)


@each_story
def test_the_next_fit_moves_exactly_the_selected_weights(change, name):
    story = tell(change, name)
    assert story.error is None, story.error
    assert story.moved == story.after.selected


@each_story
def test_no_weight_of_the_model_becomes_a_variable_of_the_optimizer(change, name):
    story = tell(change, name)
    assert not set(story.after.tracked) & set(story.weights)


@pytest.mark.parametrize("name", ["nadam", "ema", "accumulation", "loss_scale"])
def test_a_saved_model_brings_the_optimizers_state_back(name, tmp_path):
    model = models.dense_net()
    model.compile(OPTIMIZERS[name](), "mse", run_eagerly=True)
    steps(model)
    tfkit.configure_base_model(model, ["d2", "head"])
    steps(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for old, new in zip(numbers(model.optimizer.variables), numbers(loaded.optimizer.variables), strict=True):
        np.testing.assert_array_equal(new, old)


# --- against Keras itself ------------------------------------------------------------------------


def by_hand(model, names):
    """Freezes with Keras's own means: layer by layer, then a fresh `compile`."""
    for layer in model.layers:
        layer.trainable = layer.name in names
    model.compile(optimizers.SGD(0.01), "mse")
    return model


@pytest.mark.parametrize(
    ("names", "batch_norm"),
    [(("conv2", "head"), "frozen"), (("conv1", "bn1"), "frozen"), (("bn1", "conv2"), "train")],
)
def test_a_trained_models_next_fit_equals_that_of_a_model_compiled_by_hand(names, batch_norm):
    model, oracle = models.conv_net(), models.conv_net()
    model.compile(optimizers.SGD(0.01), "mse")
    fit(model, IMAGES, LABELS)
    oracle.set_weights(model.get_weights())
    tfkit.configure_base_model(model, names, batch_norm=batch_norm)
    by_hand(oracle, set(names) - ({"bn1"} if batch_norm == "frozen" else set()))
    fit(model, IMAGES, LABELS, epochs=2)
    fit(oracle, IMAGES, LABELS, epochs=2)
    for mine, theirs in zip(model.get_weights(), oracle.get_weights()):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", ["sgd", "nadam", "accumulation", "loss_scale"])
def test_momentum_goes_on_as_in_an_optimizer_that_was_never_rebound(name):
    # Keras alone can shrink the set: its optimizer knows all weights and is handed fewer.
    model, oracle = models.dense_net(), models.dense_net()
    for each in (model, oracle):
        each.compile(OPTIMIZERS[name](), "mse", run_eagerly=True)
        steps(each)
    tfkit.configure_base_model(model, ["d2", "head"])
    oracle.layers[0].trainable = False
    steps(model)
    steps(oracle)
    for mine, theirs in zip(model.get_weights(), oracle.get_weights()):
        np.testing.assert_array_equal(mine, theirs)


def test_a_moving_average_joins_with_the_weights_own_value():
    # One update after joining, the average is m · w_before + (1 - m) · w_after.
    model = models.dense_net()
    optimizer = optimizers.SGD(0.1, use_ema=True, ema_momentum=0.75)
    model.compile(optimizer, "mse", run_eagerly=True)
    tfkit.configure_base_model(model, "head")
    fit(model)
    tfkit.configure_base_model(model, ["d2", "head"])
    before = numbers([model.layers[1].kernel])[0]
    model.train_on_batch(X[:4], Y[:4])
    after = numbers([model.layers[1].kernel])[0]
    average = next(v for v in optimizer.variables if v.path.endswith("d2_kernel_average"))
    np.testing.assert_allclose(average, 0.75 * before + 0.25 * after, rtol=1e-6)


def test_momentum_follows_the_closed_form_across_a_change_of_the_selection():
    # y = w + u at x = 1, target 0: each gradient is g = 2 (w + u); v <- v / 2 - g / 10; w <- w + v.
    kept = layers.Dense(1, use_bias=False, kernel_initializer="ones", name="kept")
    paused = layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="paused")
    inputs = keras.Input((1,))
    model = keras.Model(inputs, layers.Add()([kept(inputs), paused(inputs)]))
    model.compile(optimizers.SGD(0.1, momentum=0.5), "mse")
    model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
    tfkit.configure_base_model(model, "kept")
    w, u, v = 0.8, -0.2, -0.2  # after the first update, where g = 2
    for _ in range(3):
        model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
        v = v / 2 - 2 * (w + u) / 10
        w += v
    np.testing.assert_allclose([kept.kernel[0, 0], paused.kernel[0, 0]], [w, u], rtol=1e-5)


# --- the compiled train step -------------------------------------------------------------------------


def test_nothing_moves_in_a_trained_model_after_an_empty_list():
    model = models.conv_net()
    model.compile(optimizers.SGD(0.01), "mse")
    fit(model, IMAGES, LABELS)
    tfkit.configure_base_model(model, [])
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        assert moved_by(model, lambda: fit(model, IMAGES, LABELS)) == set()


def test_a_model_that_was_wholly_frozen_can_train_again():
    model = models.dense_net()
    model.compile(optimizers.Nadam(0.01), "mse", run_eagerly=True)
    fit(model)
    tfkit.configure_base_model(model, [])
    tfkit.configure_base_model(model, "d2")
    assert moved_by(model, lambda: fit(model)) == paths_of(model.layers[1].weights)


def test_a_model_that_is_compiled_but_untrained_trains_the_selection():
    model = models.dense_net()
    model.compile("adam", "mse")
    tfkit.configure_base_model(model, "d2")
    assert moved_by(model, lambda: fit(model)) == paths_of(model.layers[1].weights)


def test_a_model_that_is_compiled_afterwards_trains_the_selection():
    model = tfkit.configure_base_model(models.dense_net(), "d2")
    model.compile("adam", "mse", run_eagerly=True)
    assert moved_by(model, lambda: fit(model)) == paths_of(model.layers[1].weights)


def test_train_on_batch_uses_the_new_selection():
    model = models.dense_net()
    model.compile("adam", "mse")
    model.train_on_batch(X, Y)
    tfkit.configure_base_model(model, "head")
    assert moved_by(model, lambda: model.train_on_batch(X, Y)) == paths_of(model.layers[-1].weights)


@pytest.mark.parametrize("arguments", [{"run_eagerly": True}, {"steps_per_execution": 3}], ids=str)
def test_how_the_model_was_compiled_is_kept(arguments):
    model = models.dense_net()
    model.compile("adam", "mse", **arguments)
    fit(model)
    tfkit.configure_base_model(model, "head")
    assert moved_by(model, lambda: fit(model)) == paths_of(model.layers[-1].weights)
    assert {name: getattr(model, name) for name in arguments} == arguments


def test_a_learning_rate_schedule_goes_on():
    model = models.dense_net()
    model.compile(optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)), "mse", run_eagerly=True)
    fit(model)
    tfkit.configure_base_model(model, "head")
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


def test_an_assigned_learning_rate_is_kept():
    model = models.dense_net()
    model.compile(optimizers.Adam(0.1), "mse", run_eagerly=True)
    fit(model)
    model.optimizer.learning_rate = 0.025
    tfkit.configure_base_model(model, "head")
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)


def test_the_optimizer_is_left_alone_when_the_selection_stays_the_same():
    model = models.dense_net()
    model.compile(optimizers.Adam(0.01), "mse", run_eagerly=True)
    tfkit.configure_base_model(model, "d2..head")
    fit(model)
    before = [id(v) for v in model.optimizer.variables]
    tfkit.configure_base_model(model, ["head", "d2"])
    assert [id(v) for v in model.optimizer.variables] == before


def test_a_model_loaded_with_its_optimizer_keeps_the_state(tmp_path):
    model = models.dense_net()
    model.compile(OPTIMIZERS["adam"](), "mse", run_eagerly=True)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tfkit.configure_base_model(loaded, "head")
    old, new = snapshot(model.optimizer), snapshot(loaded.optimizer)
    heads = {slot.split("head")[1]: value for slot, value in old.items() if "head" in slot}
    assert {slot.split("head")[1] for slot in new} == set(heads)
    for slot, value in new.items():
        np.testing.assert_array_equal(value, heads[slot.split("head")[1]])


@pytest.mark.parametrize(
    ("build", "patterns", "shape"),
    [
        (models.nested_net, ["wrapper/backbone/conv2", "head"], (4, 8, 8, 3)),
        (models.shared_net, "shared", (4, 4)),
        (models.sequence_net, ["both", "mha/query"], (4, 5, 4)),
        (models.gated_net, "gate1", (4, 6)),
    ],
    ids=["nested", "shared", "sequence", "gated"],
)
def test_a_trained_models_next_fit_moves_exactly_the_selected_weights(build, patterns, shape):
    model = build()
    x = np.random.default_rng(2).normal(size=shape).astype("float32")
    y = np.random.default_rng(3).normal(size=(4, *model.output_shape[1:])).astype("float32")
    model.compile(optimizers.Adam(0.01), "mse", run_eagerly=build is not models.nested_net)
    fit(model, x, y)
    tfkit.configure_base_model(model, patterns)
    assert moved_by(model, lambda: fit(model, x, y)) == paths_of(
        tfkit.select_layers(model, patterns).variables
    )


# --- errors ----------------------------------------------------------------------------------


def test_a_misspelt_name_fails_before_anything_changes():
    model = models.dense_net()
    message = r"must match at least one layer\. Received: pattern='haed'\. Nearest names: head"
    with pytest.raises(LayerNotFoundError, match=message):
        tfkit.configure_base_model(model, ["d1", "haed"])
    assert len(model.trainable_variables) == 6


def test_something_that_is_no_model_is_refused():
    message = r"`model` must be a Keras 3 model.*Received: model='net' of type builtins\.str.*load_model"
    with pytest.raises(ArgumentTypeError, match=message):
        tfkit.configure_base_model("net", [])


def test_an_unbuilt_model_is_refused():
    message = r"`model` must be built.*Received: model='raw', which is unbuilt\. Give it a keras\.Input"
    with pytest.raises(UnbuiltModelError, match=message):
        tfkit.configure_base_model(keras.Sequential([layers.Dense(1)], name="raw"), [])


def test_batch_norm_can_only_be_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        tfkit.configure_base_model(models.dense_net(), [], "train")
