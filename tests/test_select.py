"""`select_layers` and `layer_table`: what a pattern covers, in which order, and how it fails."""

import fnmatch
import functools
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfkit
from tests import models
from tfkit.errors import ArgumentError, ArgumentTypeError, LayerNotFoundError, UnbuiltModelError

ALL_MODELS = (
    models.dense_net,
    models.conv_net,
    models.backbone,
    models.nested_net,
    models.deep_net,
    models.shared_net,
    models.subclassed_net,
    models.sequence_net,
    models.gated_net,
)
properties = settings(deadline=None, database=None, derandomize=True, max_examples=150)


@functools.cache
def shared(build):
    """One instance of a model for all tests that only read it."""
    return build()


def paths(model, patterns):
    return tfkit.select_layers(model, patterns).paths


# --- a flat model: every kind of pattern against names written out -----------------------------


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("conv1", ("conv1",)),
        (["conv1"], ("conv1",)),
        (("conv1", "head"), ("conv1", "head")),
        ({"conv1"}, ("conv1",)),
        ("conv*", ("conv1", "conv2")),
        ("*1", ("conv1", "bn1", "relu1")),
        ("conv?", ("conv1", "conv2")),
        ("[cb]*1", ("conv1", "bn1")),
        ("[!cb]*", ("relu1", "pool", "head")),
        ("*", ("conv1", "bn1", "relu1", "conv2", "pool", "head")),
        ("bn1..conv2", ("bn1", "relu1", "conv2")),
        ("conv2..conv2", ("conv2",)),
        ("re:conv[12]", ("conv1", "conv2")),
        ("re:.*o.*", ("conv1", "conv2", "pool")),
        ("re:(?i)CONV1", ("conv1",)),
        ("!conv1", ("bn1", "relu1", "conv2", "pool", "head")),
        (["!conv1", "!re:.*o.*"], ("bn1", "relu1", "head")),
        (["conv*", "!conv1"], ("conv2",)),
        (["bn1..head", "!conv2..pool"], ("bn1", "relu1", "head")),
        (["conv*", "!conv1", "conv1"], ("conv1", "conv2")),
        (["conv1", "!conv1"], ()),
        ([], ()),
    ],
    ids=str,
)
def test_a_pattern_selects_the_layers_it_names(patterns, expected):
    assert paths(shared(models.conv_net), patterns) == expected


def test_a_generator_of_patterns_is_a_list_of_patterns():
    assert paths(shared(models.conv_net), (f"conv{i}" for i in (1, 2))) == ("conv1", "conv2")


def test_selected_layers_are_the_models_own_objects():
    model = shared(models.conv_net)
    assert tfkit.select_layers(model, ["head", "conv1"]).layers == (model.layers[0], model.layers[-1])


def test_the_order_is_the_models_and_not_the_patterns():
    assert paths(models.dense_net((4,) * 6), ["head", "d5", "d1", "d3"]) == ("d1", "d3", "d5", "head")


def test_a_layer_named_twice_is_selected_once():
    assert paths(shared(models.conv_net), ["conv1", "conv*", "conv1..bn1"]) == ("conv1", "bn1", "conv2")


@pytest.mark.parametrize("pattern", ["re:onv1", "re:conv"])
def test_a_regular_expression_must_match_the_whole_path(pattern):
    with pytest.raises(LayerNotFoundError, match=pattern):
        paths(shared(models.conv_net), pattern)


def test_a_glob_is_case_sensitive():
    with pytest.raises(LayerNotFoundError, match=re.escape("CONV*")):
        paths(shared(models.conv_net), "CONV*")


def test_a_layer_object_selects_itself():
    model = shared(models.conv_net)
    assert paths(model, model.get_layer("conv2")) == ("conv2",)


def test_layer_objects_mix_with_names_in_a_list():
    model = shared(models.conv_net)
    assert paths(model, [model.get_layer("conv2"), "head"]) == ("conv2", "head")


def test_a_predicate_selects_what_it_holds_for():
    assert paths(shared(models.conv_net), lambda layer: isinstance(layer, layers.Conv2D)) == (
        "conv1",
        "conv2",
    )


def test_a_removal_takes_from_what_a_predicate_selected():
    assert paths(shared(models.conv_net), [lambda layer: bool(layer.weights), "!conv1..bn1"]) == (
        "conv2",
        "head",
    )


def test_the_layers_of_a_selection_select_the_same_again():
    model = shared(models.nested_net)
    once = tfkit.select_layers(model, ["backbone", "!bn1"])
    assert tfkit.select_layers(model, once.layers).paths == once.paths


def test_the_length_of_a_selection_is_its_number_of_layers():
    assert len(tfkit.select_layers(shared(models.conv_net), "conv*")) == 2


def test_an_empty_selection_has_no_variables():
    assert tfkit.select_layers(shared(models.conv_net), []).variables == ()


def test_a_selections_repr_shows_the_paths():
    assert repr(tfkit.select_layers(shared(models.conv_net), "head")) == "Selection(paths=('head',))"


@pytest.mark.parametrize("name", ["block[1]", "what?"])
def test_an_exact_name_is_found_although_it_holds_a_globs_letters(name):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name=name)])
    assert paths(model, name) == (name,)


# --- nested models -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("b", ("middle/inner/b",)),
        ("a", ("middle/a", "middle/inner/a")),
        ("middle/a", ("middle/a",)),
        ("middle/inner/a", ("middle/inner/a",)),
        ("inner", ("middle/inner/a", "middle/inner/b")),
        ("middle/inner", ("middle/inner/a", "middle/inner/b")),
        ("middle", ("middle/a", "middle/inner/a", "middle/inner/b", "middle/c")),
        ("inn*", ("middle/inner/a", "middle/inner/b")),
        ("[ac]", ("middle/a", "middle/inner/a", "middle/c")),
        ("*/a", ("middle/a", "middle/inner/a")),
        ("middle/?", ("middle/a", "middle/c")),
        ("middle/inner/*", ("middle/inner/a", "middle/inner/b")),
        ("*/inner/a", ("middle/inner/a",)),
        ("re:middle/[^/]", ("middle/a", "middle/c")),
        ("re:.*/a", ("middle/a", "middle/inner/a")),
        ("re:middle", ("middle/a", "middle/inner/a", "middle/inner/b", "middle/c")),
        ("stem..middle/a", ("stem", "middle/a")),
        ("middle/inner/a..c", ("middle/inner/a", "middle/inner/b", "middle/c")),
        ("stem..inner", ("stem", "middle/a", "middle/inner/a", "middle/inner/b")),
        ("inner..head", ("middle/inner/a", "middle/inner/b", "middle/c", "head")),
        (["middle", "!inner"], ("middle/a", "middle/c")),
        (["!middle"], ("stem", "head")),
        (["!middle", "b"], ("stem", "middle/inner/b", "head")),
        ("*", ("stem", "middle/a", "middle/inner/a", "middle/inner/b", "middle/c", "head")),
    ],
    ids=str,
)
def test_a_pattern_reaches_into_two_levels_of_nesting(patterns, expected):
    assert paths(shared(models.deep_net), patterns) == expected


def test_a_nested_model_as_object_covers_all_inside():
    model = shared(models.deep_net)
    assert paths(model, model.get_layer("middle")) == paths(model, "middle")


def test_a_predicate_that_holds_for_a_nested_model_covers_all_inside():
    assert paths(shared(models.deep_net), lambda layer: layer.name == "inner") == paths(
        shared(models.deep_net), "inner"
    )


@pytest.mark.parametrize("pattern", ["deep", "deep/stem", "deep/*", "re:deep/.*"])
def test_paths_leave_out_the_root_models_name(pattern):
    with pytest.raises(LayerNotFoundError, match=re.escape(f"Received: pattern={pattern!r}")):
        paths(shared(models.deep_net), pattern)


def test_a_part_of_a_path_is_no_path():
    with pytest.raises(LayerNotFoundError, match=r"Nearest names: .*middle/inner/a"):
        paths(shared(models.deep_net), "inner/a")


def test_a_functional_models_layers_are_selected_in_keras_order():
    model = shared(models.backbone)
    assert paths(model, "*") == tuple(layer.name for layer in model.layers)


def test_functional_models_nest_like_sequential_ones():
    assert paths(shared(models.nested_net), ["backbone", "!*input*"]) == tuple(
        f"wrapper/backbone/{name}" for name in ("conv1", "bn1", "conv2")
    )


# --- layers that are shared ------------------------------------------------------------------


def test_a_shared_layer_is_selected_once_under_its_first_path():
    assert paths(shared(models.shared_net), "shared") == ("first/shared",)


@pytest.mark.parametrize("pattern", ["first/shared", "second/shared", "*/shared", "re:second/s.*d"])
def test_a_shared_layer_answers_to_each_of_its_paths(pattern):
    model = shared(models.shared_net)
    assert tfkit.select_layers(model, pattern).layers == (model.layers[0].layers[0],)


def test_each_nested_model_covers_the_layer_they_share():
    model = shared(models.shared_net)
    both = model.layers[0].layers[0]
    assert all(both in tfkit.select_layers(model, name).layers for name in ("first", "second"))


def test_removing_a_nested_model_removes_the_layer_it_shares():
    assert paths(shared(models.shared_net), ["*", "!second"]) == ("first/first_own",)


def test_a_range_may_end_at_a_shared_layer():
    assert paths(shared(models.shared_net), "shared..first_own") == ("first/shared", "first/first_own")


# --- subclassed models and layers of several parts -----------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("block1", ("block1/conv", "block1/norm")),
        ("conv", ("block1/conv", "block2/conv")),
        ("block2/*", ("block2/conv", "block2/norm")),
        ("block1/norm..block2/conv", ("block1/norm", "block2/conv")),
        ("block2..head", ("block2/conv", "block2/norm", "pool", "head")),
        (["*", "!norm"], ("block1/conv", "block2/conv", "pool", "head")),
    ],
    ids=str,
)
def test_subclassed_models_show_the_layers_inside_their_blocks(patterns, expected):
    assert paths(shared(models.subclassed_net), patterns) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("lstm", ("lstm",)),
        ("lstm_cell", ("lstm",)),
        ("both", ("both",)),
        ("both/forward_gru", ("both/forward_gru",)),
        (["both", "!backward_gru"], ("both/forward_gru",)),
        (["forward_gru", "backward_gru"], ("both",)),
        ("mha", ("mha",)),
        ("mha/query", ("mha/query",)),
        ("mha/*", ("mha",)),
        ("each", ("each",)),
        ("inside", ("each",)),
        ("lstm..mha", ("lstm", "both", "mha")),
        ("*", ("tokens", "lstm", "both", "mha", "each", "flat", "head")),
    ],
    ids=str,
)
def test_a_composite_of_keras_is_one_layer_unless_a_part_is_named(patterns, expected):
    assert paths(shared(models.sequence_net), patterns) == expected


def test_removing_a_part_of_attention_leaves_its_other_projections():
    selected = paths(shared(models.sequence_net), ["mha", "!query"])
    assert [path for path in selected if path.endswith(("query", "key", "value", "output"))] == [
        "mha/key",
        "mha/value",
        "mha/attention_output",
    ]


def test_a_part_of_attention_selects_only_its_own_variables():
    model = shared(models.sequence_net)
    kernels = [v for v in model.get_layer("mha").weights if "/query/" in v.path]
    assert list(map(id, tfkit.select_layers(model, "mha/query").variables)) == list(map(id, kernels))


def test_a_composite_selects_all_its_variables():
    model = shared(models.sequence_net)
    assert {id(v) for v in tfkit.select_layers(model, "both").variables} == {
        id(v) for v in model.get_layer("both").weights
    }


def test_a_composed_layer_with_a_weight_of_its_own_is_listed_with_its_parts():
    assert paths(shared(models.gated_net), "gate1") == ("gate1", "gate1/mix")


def test_removing_a_part_keeps_the_weight_of_the_composed_layer_itself():
    model = shared(models.gated_net)
    assert [v.name for v in tfkit.select_layers(model, ["gate1", "!gate1/mix"]).variables] == ["gain"]


@pytest.mark.parametrize("build", ALL_MODELS, ids=lambda build: build.__name__)
def test_everything_covers_every_weight_once(build):
    model = shared(build)
    chosen = [id(v) for v in tfkit.select_layers(model, "*").variables]
    assert sorted(chosen) == sorted(id(v) for v in model.weights)


@pytest.mark.parametrize("build", ALL_MODELS, ids=lambda build: build.__name__)
def test_every_selected_path_selects_its_own_layer(build):
    model = shared(build)
    everything = tfkit.select_layers(model, "*")
    for path, layer in zip(everything.paths, everything.layers):
        assert layer in tfkit.select_layers(model, path).layers


def test_a_weight_of_the_root_model_itself_can_be_selected():
    model = shared(models.root_weight_net)
    assert id(model.scale) in {id(v) for v in tfkit.select_layers(model, lambda _: True).variables}


def test_a_layer_outside_a_functional_models_graph_is_found():
    assert paths(shared(models.hybrid_net), "extra") == ("extra",)


# --- the algebra of patterns, against fnmatch and re over the names ------------------------------

FLAT = ("enc_conv1", "enc_bn1", "enc_conv2", "enc_bn2", "dec_conv1", "dec_conv2", "head")
DEEP = {  # every node's path -> the leaves it covers
    "stem": ("stem",),
    "middle": ("middle/a", "middle/inner/a", "middle/inner/b", "middle/c"),
    "middle/a": ("middle/a",),
    "middle/inner": ("middle/inner/a", "middle/inner/b"),
    "middle/inner/a": ("middle/inner/a",),
    "middle/inner/b": ("middle/inner/b",),
    "middle/c": ("middle/c",),
    "head": ("head",),
}


def flat_net():
    stack = [layers.Dense(2, name=name) for name in FLAT]
    return keras.Sequential([keras.Input((2,)), *stack])


def covered(pattern, nodes):
    """The leaves that a positive pattern covers: the grammar of DESIGN.md, written with fnmatch and re."""
    leaves = [path for path in nodes if nodes[path] == (path,)]
    if pattern.startswith("re:"):
        hits = [path for path in nodes if re.fullmatch(pattern[3:], path)]
    elif ".." in pattern:
        first, last = (leaves.index(end) for end in pattern.split(".."))
        hits = leaves[first : last + 1]
    elif "/" in pattern:
        hits = [path for path in nodes if fnmatch.fnmatchcase(path, pattern)]
    else:
        hits = [path for path in nodes if fnmatch.fnmatchcase(path.split("/")[-1], pattern)]
    return {leaf for path in hits for leaf in nodes[path]}


def expected(patterns, nodes):
    """What a list of patterns selects, as a fold over sets; None where one matches nothing."""
    leaves = [path for path in nodes if nodes[path] == (path,)]
    chosen = set(leaves) if patterns and patterns[0].startswith("!") else set()
    for pattern in patterns:
        found = covered(pattern.removeprefix("!"), nodes)
        if not found:
            return None
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    return tuple(leaf for leaf in leaves if leaf in chosen)


@st.composite
def positive_patterns(draw, nodes):
    names = [*nodes, *dict.fromkeys(path.split("/")[-1] for path in nodes)]
    name = draw(st.sampled_from(names))
    kind = draw(st.sampled_from(["exact", "star", "mark", "set", "range", "regex"]))
    first = draw(st.integers(0, len(name) - 1))
    if kind == "star":
        return name[:first] + "*" + name[draw(st.integers(first, len(name))) :]
    if kind == "mark":
        return name[:first] + "?" + name[first + 1 :]
    if kind == "set":
        return f"{name[:first]}[{draw(st.sampled_from(['a-c', '12', '!1', name[first]]))}]{name[first + 1 :]}"
    if kind == "range":
        leaves = [path for path in nodes if nodes[path] == (path,)]
        start = draw(st.integers(0, len(leaves) - 1))
        return f"{leaves[start]}..{leaves[draw(st.integers(start, len(leaves) - 1))]}"
    if kind == "regex":
        ends = st.sampled_from([".*", ""])
        return "re:" + draw(ends) + re.escape(name[first:]) + draw(ends)
    return name


def pattern_lists(nodes):
    one = st.builds(str.__add__, st.sampled_from(["", "", "!"]), positive_patterns(nodes))
    return st.lists(one, max_size=5)


def check_against_oracle(model, patterns, nodes):
    answer = expected(patterns, nodes)
    if answer is None:
        with pytest.raises(LayerNotFoundError, match=r"must match at least one layer\. Received: pattern="):
            paths(model, patterns)
    else:
        assert paths(model, patterns) == answer


@properties
@given(pattern_lists({name: (name,) for name in FLAT}))
def test_lists_of_patterns_follow_fnmatch_and_re_on_a_flat_model(patterns):
    check_against_oracle(shared(flat_net), patterns, {name: (name,) for name in FLAT})


@properties
@given(pattern_lists(DEEP))
def test_lists_of_patterns_follow_fnmatch_and_re_on_a_nested_model(patterns):
    check_against_oracle(shared(models.deep_net), patterns, DEEP)


SUBSETS = st.lists(st.sampled_from(FLAT), max_size=6)


@properties
@given(SUBSETS, st.randoms(use_true_random=False))
def test_the_order_of_positive_patterns_does_not_matter(names, random):
    assert paths(shared(flat_net), random.sample(names, len(names))) == paths(shared(flat_net), names)


@properties
@given(SUBSETS, SUBSETS)
def test_a_joined_list_selects_the_union(left, right):
    union = {*paths(shared(flat_net), left), *paths(shared(flat_net), right)}
    assert paths(shared(flat_net), left + right) == tuple(name for name in FLAT if name in union)


@properties
@given(SUBSETS, SUBSETS)
def test_removals_select_the_difference(left, right):
    kept = set(left) - set(right)
    removals = [f"!{name}" for name in right]
    chosen = paths(shared(flat_net), [*left, *removals] if left else [])
    assert chosen == tuple(name for name in FLAT if name in kept)


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "wrong", "right"),
    [
        (models.conv_net, "cnov1", "conv1"),
        (models.conv_net, "haed", "head"),
        (models.conv_net, "conv_2", "conv2"),
        (models.conv_net, "re:cnov2", "conv2"),
        (models.conv_net, "poool*", "pool"),
        (models.nested_net, "projcet", "project"),
        (models.nested_net, "wrapper/backbone/bn2", "wrapper/backbone/bn1"),
        (models.nested_net, "backbone/conv1", "wrapper/backbone/conv1"),
        (models.sequence_net, "ltsm", "lstm"),
        (models.subclassed_net, "block3", "block1"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(build, wrong, right):
    with pytest.raises(LayerNotFoundError, match=r"Nearest names: ") as caught:
        paths(shared(build), wrong)
    assert right in str(caught.value).partition("Nearest names: ")[2].rstrip(".").split(", ")


@pytest.mark.parametrize("wrong", ["d", "dd", "dense", "xyz", ""])
def test_at_most_three_names_are_suggested_and_all_exist(wrong):
    model = models.dense_net((4,) * 6)
    with pytest.raises(LayerNotFoundError, match=r"Nearest names: ") as caught:
        paths(model, wrong)
    suggested = str(caught.value).partition("Nearest names: ")[2].rstrip(".").split(", ")
    assert 1 <= len(suggested) <= 3
    assert set(suggested) <= {layer.name for layer in model.layers}


def test_an_unknown_name_states_the_rule_what_was_received_and_the_choices():
    message = r"Every pattern must match at least one layer\. Received: pattern='conv3'\. Nearest names: conv"
    with pytest.raises(LayerNotFoundError, match=message):
        paths(shared(models.conv_net), "conv3")


@pytest.mark.parametrize("patterns", [["head", "conv3"], ["conv3", "head"], ["!conv3"], ["*", "!conv3"]])
def test_one_unknown_name_in_a_list_is_an_error(patterns):
    with pytest.raises(LayerNotFoundError, match="conv3"):
        paths(shared(models.conv_net), patterns)


def test_an_unknown_end_of_a_range_is_named_within_its_pattern():
    message = r"Received: pattern='conv1\.\.haed', where 'haed' is unknown\. Nearest names: head"
    with pytest.raises(LayerNotFoundError, match=message):
        paths(shared(models.conv_net), "conv1..haed")


def test_a_predicate_that_holds_for_nothing_is_an_error():
    message = r"must match at least one layer\. Received: pattern=<function .*none of the model's 6 layers"
    with pytest.raises(LayerNotFoundError, match=message):
        paths(shared(models.conv_net), lambda layer: False)


def test_a_layer_of_another_model_is_an_error():
    message = r"must match at least one layer\. Received: pattern=<Dense name=stranger"
    with pytest.raises(LayerNotFoundError, match=message):
        paths(shared(models.conv_net), layers.Dense(1, name="stranger"))


def test_a_layer_with_a_known_name_from_another_model_is_an_error():
    with pytest.raises(LayerNotFoundError, match=r"Received: pattern=<Conv2D name=conv1"):
        paths(shared(models.conv_net), models.conv_net().layers[0])


def test_a_reversed_range_is_an_error_that_writes_the_right_one():
    message = (
        r"A range must run from an earlier layer to a later one\. "
        r"Received: pattern='head\.\.conv1'\. Write 'conv1\.\.head'"
    )
    with pytest.raises(ArgumentError, match=message):
        paths(shared(models.conv_net), "head..conv1")


def test_a_range_backwards_out_of_a_nested_model_is_reversed():
    with pytest.raises(ArgumentError, match=r"earlier layer to a later one.*Write 'inner\.\.b'"):
        paths(shared(models.deep_net), "b..inner")


def test_an_end_that_names_two_layers_is_an_error_that_lists_their_paths():
    message = (
        r"Each end of a range must name one layer\. Received: pattern='a\.\.head', "
        r"where 'a' stands at middle/a, middle/inner/a\. Use the full path"
    )
    with pytest.raises(ArgumentError, match=message):
        paths(shared(models.deep_net), "a..head")


def test_a_malformed_regular_expression_is_an_error_with_its_reason():
    message = r"must hold a regular expression\. Received: pattern='re:\(' \(.*unterminated subpattern"
    with pytest.raises(ArgumentError, match=message):
        paths(shared(models.conv_net), "re:(")


@pytest.mark.parametrize("pattern", [None, 3, 1.5, ["conv1", 3], [["conv1"]], [b"conv1"]], ids=str)
def test_a_pattern_of_another_kind_is_a_type_error(pattern):
    message = r"A pattern must be a string, a layer or a function of a layer\. Received: pattern=.* of type "
    with pytest.raises(ArgumentTypeError, match=message):
        paths(shared(models.conv_net), pattern)


def test_a_mapping_is_refused_for_its_values_would_go_unread():
    with pytest.raises(
        ArgumentTypeError, match=r"as one or as a list\. Received: \{'conv1': False\}.*Write \["
    ):
        paths(shared(models.conv_net), {"conv1": False})


@pytest.mark.parametrize("call", [lambda model: tfkit.select_layers(model, "*"), tfkit.layer_table])
def test_something_that_is_no_model_is_a_type_error(call):
    message = r"`model` must be a Keras 3 model.*Received: model='net' of type builtins\.str.*load_model"
    with pytest.raises(ArgumentTypeError, match=message):
        call("net")


@pytest.mark.parametrize("call", [lambda model: tfkit.select_layers(model, "*"), tfkit.layer_table])
def test_an_unbuilt_model_is_an_error_that_says_how_to_build_it(call):
    message = r"`model` must be built.*Received: model='raw', which is unbuilt\. Give it a keras\.Input"
    with pytest.raises(UnbuiltModelError, match=message):
        call(keras.Sequential([layers.Dense(1)], name="raw"))


# --- layer_table -------------------------------------------------------------------------------


def test_the_tables_columns_are_the_contracts():
    assert list(tfkit.layer_table(shared(models.conv_net)).columns) == [
        "path",
        "class",
        "trainable",
        "parameters",
        "sparsity",
        "dtype",
    ]


def test_the_table_lists_layers_with_weights_in_model_order():
    table = tfkit.layer_table(shared(models.conv_net))
    assert table[["path", "class", "parameters"]].values.tolist() == [
        ["conv1", "Conv2D", 3 * 3 * 3 * 4 + 4],
        ["bn1", "BatchNormalization", 4 * 4],
        ["conv2", "Conv2D", 3 * 3 * 4 * 6 + 6],
        ["head", "Dense", 6 * 2 + 2],
    ]


@pytest.mark.parametrize(
    "build", [*ALL_MODELS, models.root_weight_net, models.hybrid_net, models.tied_net, models.twins_net]
)
def test_the_tables_parameters_add_up_to_the_models(build):
    model = shared(build)
    assert tfkit.layer_table(model).parameters.sum() == model.count_params()


def test_the_tables_parameters_add_up_for_a_model_of_keras_applications():
    model = keras.applications.MobileNetV3Small(weights=None, input_shape=(32, 32, 3), minimalistic=True)
    assert tfkit.layer_table(model).parameters.sum() == model.count_params()


@pytest.mark.parametrize("build", ALL_MODELS, ids=lambda build: build.__name__)
def test_every_path_of_the_table_is_unique(build):
    assert tfkit.layer_table(shared(build)).path.is_unique


def test_a_shared_layer_has_one_row():
    assert tfkit.layer_table(shared(models.shared_net)).path.tolist() == [
        "first/shared",
        "first/first_own",
        "second/second_own",
    ]


def test_a_composed_layers_row_counts_only_its_own_weight():
    table = tfkit.layer_table(shared(models.gated_net)).set_index("path")
    assert table.parameters.to_dict() == {
        "gate1": 4,
        "gate1/mix": 6 * 4 + 4,
        "gate2": 4,
        "gate2/mix": 4 * 4 + 4,
        "head": 4 * 2 + 2,
    }


def test_a_frozen_layer_is_not_trainable_in_the_table():
    model = models.conv_net()
    model.get_layer("conv1").trainable = False
    assert tfkit.layer_table(model).set_index("path").trainable.to_dict() == {
        "conv1": False,
        "bn1": True,
        "conv2": True,
        "head": True,
    }


def test_a_layer_whose_weights_never_train_is_not_trainable_in_the_table():
    model = keras.Sequential([keras.Input((3,)), layers.Normalization(name="scale"), layers.Dense(1)])
    assert not tfkit.layer_table(model).trainable[0]


@pytest.mark.parametrize("zeros", [0, 1, 12, 48])
def test_sparsity_is_the_fraction_of_zeros_in_the_kernel(zeros):
    model = models.dense_net()
    kernel = np.ones((6, 8), "float32")
    kernel.flat[:zeros] = 0
    model.layers[0].kernel.assign(kernel)
    assert tfkit.layer_table(model).sparsity[0] == zeros / 48


def test_zeros_in_biases_do_not_count():
    model = keras.Sequential([keras.Input((5, 4)), layers.GRU(3, name="gru"), layers.Dense(2, name="head")])
    assert tfkit.layer_table(model).sparsity.tolist() == [0.0, 0.0]


def test_sparsity_of_a_composite_weighs_its_kernels_by_size():
    model = models.sequence_net()
    cell = model.get_layer("lstm").cell
    cell.kernel.assign(np.zeros(cell.kernel.shape))  # 4 × 12 zeros, and 3 × 12 recurrent weights remain
    assert tfkit.layer_table(model).set_index("path").sparsity["lstm"] == 48 / 84


def test_a_layer_without_a_kernel_has_sparsity_zero():
    assert tfkit.layer_table(shared(models.conv_net)).set_index("path").sparsity["bn1"] == 0.0


@pytest.mark.parametrize(
    ("policy", "stored"), [("float32", "float32"), ("float16", "float16"), ("mixed_float16", "float32")]
)
def test_dtype_is_the_dtype_of_the_weights(policy, stored):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype=policy)])
    assert tfkit.layer_table(model)["dtype"].tolist() == [stored]


def test_a_model_without_weights_has_an_empty_table():
    model = keras.Sequential([keras.Input((3,)), layers.ReLU()])
    assert len(tfkit.layer_table(model)) == 0


def test_an_end_of_a_range_may_be_a_name_at_the_top_that_stands_below_too():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a")], name="inner")
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, name="a"), inner, keras.layers.Dense(2, name="head")]
    )
    assert tfkit.select_layers(model, "a..head").paths == ("a", "inner/a", "head")
    assert tfkit.select_layers(model, "re:a").paths == ("a",)
