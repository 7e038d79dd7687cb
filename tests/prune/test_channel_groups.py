"""Which channels go together, against what a person reads from the architecture."""

import keras
import pytest
from keras import layers

import tfkit
from tests.prune import topologies_sequences, topologies_shapes  # noqa: F401 (they add to TOPOLOGIES)
from tests.prune.topologies import made
from tfkit.errors import PruningError
from tfkit.prune.groups import Wiring

# by a layer that makes it: channels of the first layer, how many go at once, layers with weights in it
EXPECTED = {
    "plain_chain": {"a": (12, 1, "a b"), "b": (16, 1, "b c"), "c": (8, 1, "c head")},
    "residual_add": {
        "stem": (16, 1, "stem stem_bn inner outer outer_bn head"),
        "inner": (24, 1, "inner inner_bn outer"),
    },
    "add_of_three": {"a": (12, 1, "a b c d e"), "d": (8, 1, "d e head")},
    "depthwise_residual": {
        "stem": (8, 1, "stem stem_bn expand project batch_normalization_1 head"),
        "expand": (24, 1, "expand expand_bn dw batch_normalization project"),
    },
    "concatenation": {"a": (8, 1, "a bn c"), "b": (12, 1, "b bn c"), "c": (10, 1, "c head")},
    # read twice by d, normalised twice
    "concatenation_of_concatenation": {
        "a": (6, 1, "a bn d"),
        "b": (8, 1, "b bn d"),
        "c": (10, 1, "c bn d"),
        "d": (8, 1, "d head"),
    },
    "concatenation_then_add": {
        "a": (8, 1, "a wide c"),
        "b": (12, 1, "b wide c"),
        "c": (8, 1, "c head"),
    },
    # (8 | 12) + (14 | 6): 8 of a + d, 6 of b + d, 6 of b + e
    "add_of_shifted_concatenations": {
        "a": (8, 1, "a d c"),
        "b": (6, 1, "b d c"),
        "e": (6, 1, "b e c"),
        "c": (8, 1, "c head"),
    },
    "spatial_gate": {"a": (12, 1, "a gate b"), "b": (8, 1, "b head"), "gate": (1, 1, "gate")},
    "squeeze_and_excite": {
        "a": (16, 1, "a a_bn reduce excite b"),
        "reduce": (4, 1, "reduce excite"),
        "b": (8, 1, "b head"),
    },
    "depthwise_multipliers": {"a": (10, 1, "a dw1 dw2 bn b"), "b": (8, 1, "b head")},
    "separable": {"s1": (12, 1, "s1 s2"), "s2": (16, 1, "s2 s3"), "s3": (8, 1, "s3 head")},
    # a channel of each of the 2 groups that read, then of each of the 4; g2's 24 channels are
    # made in halves of 12 and read in quarters of 6
    "grouped": {
        "a": (16, 2, "a g2"),
        "g2": (24, 4, "g2 g4"),
        "g4": (16, 4, "g4 b"),
        "b": (8, 1, "b head"),
    },
    "groups_equal_to_channels": {"a": (12, 1, "a dw1 dw2 b"), "b": (8, 1, "b head")},
    "unet": {
        "d1": (8, 1, "d1 d1_bn d2 u2"),
        "d2": (16, 1, "d2 d2_bn d3 u1"),
        "d3": (24, 1, "d3 d3_bn up1"),
        "up1": (16, 1, "up1 u1"),
        "u1": (12, 1, "u1 u1_bn up2"),
        "up2": (8, 1, "up2 u2"),
        "u2": (8, 1, "u2 u2_bn map"),
    },
    "flatten_into_dense": {"a": (12, 1, "a a_bn d"), "d": (16, 1, "d head")},
    # one channel of the 4 x 4 places is 16 numbers of d
    "decoder_from_dense": {"d": (192, 16, "d t"), "t": (8, 1, "t map")},
    "shared_convolution": {"a": (8, 1, "a shared b"), "b": (6, 1, "b head")},
    "siamese": {
        "encoder/a": (12, 1, "encoder/a encoder/batch_normalization encoder/b"),
        "encoder/b": (8, 1, "encoder/b d"),
        "d": (12, 1, "d head"),
    },
    "nested_three_deep": {
        "outer/o": (8, 1, "outer/o outer/middle/inner/i1 outer/middle/inner/i2 "
                          "outer/middle/inner/i2_bn outer/middle/m"),
        "outer/middle/inner/i1": (12, 1, "outer/middle/inner/i1 outer/middle/inner/i1_bn "
                                         "outer/middle/inner/i2"),
        "outer/middle/m": (10, 1, "outer/middle/m outer/p"),
        "outer/p": (6, 1, "outer/p head"),
    },
    "group_norms": {
        "a": (16, 4, "a gn4 b"),
        "b": (12, 1, "b instance c"),
        "c": (10, 1, "c gn1 d"),
        "d": (8, 1, "d gn8 e"),
        "e": (8, 1, "e head"),
    },
    # channel i of the first half and of the second, for g1 reads in halves; shuffled into pairs
    # (0, 8), (1, 9), …, of which g2 reads the first four pairs with one half, the others with another
    "channel_shuffle": {"a": (16, 2, "a g1"), "g1": (16, 4, "g1 g2"), "g2": (12, 2, "g2 head")},
    "shuffle_added_to_itself": {"d": (4, 4, "d e"), "e": (10, 1, "e head")},
    "convnext_block": {
        "stem": (16, 1, "stem dw ln up down scale head"),
        "up": (32, 1, "up down"),
    },
    "attention_without_a_residual": {
        "q": (12, 1, "q mha"),
        "v": (10, 1, "v mha"),
        "mha": (4, 1, "mha"),
        "mha#2": (12, 1, "mha d"),
        "d": (8, 1, "d head"),
    },
    "recurrence_with_states": {"lstm": (10, 1, "lstm d"), "d": (12, 1, "d head")},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_the_groups_of(name):
    groups = Wiring(made(name)).groups
    found = [(sorted(group.layers), group.channels, group.width) for group in groups]
    wanted = [(sorted(named.split()), channels, width) for channels, width, named in EXPECTED[name].values()]
    assert sorted(found) == sorted(wanted)
    assert all(group.name.split("#")[0] == group.makers[0] == group.layers[0] for group in groups)


UNKNOWN = "does something to its channels that tfkit does not know"
# groups that stay whole and why, the head's apart; and those that may lose channels
LEFT = {
    "lambda_in_the_middle": ({"b": f"lambda (Lambda) {UNKNOWN}"}, {"a", "c", "d"}),
    "custom_layer_in_the_middle": ({"b": f"custom (Swish3) {UNKNOWN}"}, {"a", "c", "d"}),
    "subclassed_model_in_the_middle": ({"b": f"mixer (Mixer) {UNKNOWN}"}, {"a", "c", "d"}),
    "convolution_of_its_own": ({"b": f"standardized (Standardized) {UNKNOWN}"}, {"a", "c", "d"}),
    "softmax_in_the_middle": (
        {"b": "softmax (Activation) has the activation softmax, which mixes all channels"},
        {"a", "c", "d"},
    ),
    "softmax_inside_a_convolution": (
        {"attend": "attend has the activation softmax, which mixes all channels"},
        {"a", "b", "c", "d"},
    ),
    "roll_in_the_middle": ({"b": f"roll (Roll) {UNKNOWN}"}, {"a", "c", "d"}),
    "mean_over_channels": ({"a": "mean (Mean) mixes all channels"}, {"b", "c"}),
    "dot_product": (
        {"a": f"dot (Dot) {UNKNOWN}", "b": f"dot (Dot) {UNKNOWN}"},
        {"c"},
    ),
    "wrappers": (
        {"b": f"distributed (TimeDistributed) {UNKNOWN}", "c": f"both (Bidirectional) {UNKNOWN}"},
        {"a", "before", "d"},
    ),
    "model_called_in_two_ways": (
        {
            "b": f"inner (Functional) {UNKNOWN}",
            "a": f"inner (Functional) {UNKNOWN}",
            "inner/i1": f"inner (Functional) {UNKNOWN}",
            "inner/i2": f"inner (Functional) {UNKNOWN}",
        },
        {"d"},
    ),
    "batch_that_moves": (
        {
            "b": "reshape (Reshape) moves what is in a sample to other samples",
            "d": "reshape_1 (Reshape) moves what is in a sample to other samples",
        },
        {"a", "c"},
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_whole_and_why(name):
    left, free = LEFT[name]
    model = made(name)
    table = tfkit.plan_channel_pruning(model, ratio=0.4, multiple_of=1).table.set_index("group")
    reasons = table.reason.to_dict()
    head = reasons.pop("head")
    assert head == "goes out of the network"
    assert {group for group, reason in reasons.items() if not reason} == free
    assert {group: reason for group, reason in reasons.items() if reason} == left
    whole = table[table.reason != ""]
    assert (whole.channels_before == whole.channels_after).all()


def test_a_mask_from_an_embedding_stops_nothing():
    names = {group.name for group in Wiring(made("recurrences")).groups}
    assert names == {"words", "lstm", "gru", "old_gru", "rnn"}


def test_a_layer_that_is_also_inside_a_wrapper_is_refused():
    model = topologies_sequences.layer_also_inside_a_wrapper()
    with pytest.raises(
        PruningError, match=r"distributed and shared both hold .*shared/kernel.*at both places"
    ):
        tfkit.plan_channel_pruning(model, ratio=0.4)


def test_attention_with_several_axes_of_outputs_ends_the_group():
    inputs = keras.Input((7, 4))
    x = layers.Dense(12, name="q")(inputs)
    x = layers.MultiHeadAttention(2, 3, output_shape=(2, 5), name="mha")(x, x)
    x = layers.Dense(8, activation="relu", name="d")(layers.Reshape((7, 10))(x))
    wiring = Wiring(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    assert [group.name for group in wiring.groups] == ["d"]
    assert wiring.left[0].reason == "mha (MultiHeadAttention) has masks, scores or axes of its own"


def test_noise_of_a_fixed_shape_ends_the_group():
    fixed = layers.Dropout(0.5, noise_shape=(None, 1, 12), name="drop")
    free = layers.Dropout(0.5, noise_shape=(None, 1, None))
    chain = [layers.Dense(12, name="a"), fixed, layers.Dense(8, name="b"), free, layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((5, 6)), *chain])
    table = tfkit.plan_channel_pruning(model, ratio=0.5).table.set_index("group")
    assert table.reason["a"] == "drop (Dropout) draws noise of a fixed shape"
    assert table.channels_after["b"] == 4
    assert tfkit.prune_channels(model, ratio=0.5)(keras.ops.ones((2, 5, 6)), training=True).shape == (2, 5, 2)


def test_a_tensor_that_goes_out_keeps_its_channels():
    left = {group.name: group.reason for group in Wiring(made("inputs_and_outputs_in_a_list")).left}
    assert left == dict.fromkeys(["c", "map", "head"], "goes out of the network")


def test_channels_beside_an_input_are_left_for_what_stops_them():
    """Not because they lie beside one that is an input."""
    inputs = keras.Input((4,))
    x = layers.Concatenate()([inputs, layers.Dense(8, name="a")(inputs)])
    x = layers.Dense(12, activation="relu", name="b")(layers.Softmax(name="soft")(x))
    left = Wiring(keras.Model(inputs, layers.Dense(2, name="head")(x))).left
    assert {group.name: group.reason for group in left}["a"] == f"soft (Softmax) {UNKNOWN}"


def test_a_unit_of_a_recurrence_counts_once_whatever_its_gates():
    table = tfkit.plan_channel_pruning(made("recurrences"), ratio=0.5, scope="uniform", multiple_of=4).table
    before, after = table.set_index("group").channels_before, table.set_index("group").channels_after
    assert before.to_dict() == {"words": 12, "lstm": 8, "gru": 10, "old_gru": 6, "rnn": 12, "head": 3}
    assert all(after[name] % 4 == 0 for name in ("words", "lstm", "gru", "old_gru", "rnn"))


def test_a_layer_that_is_not_chosen_keeps_the_whole_group():
    plan = tfkit.plan_channel_pruning(made("residual_add"), ratio=0.25, layers=["stem", "inner"])
    table = plan.table.set_index("group")
    assert table.reason["stem"] == "outer is not among `layers`"
    assert table.channels_after.to_dict() == {"stem": 16, "inner": 16, "head": 3}


def test_nothing_that_may_go_is_refused_with_the_reasons():
    inputs = keras.Input((4,))
    x = layers.Softmax(name="soft")(layers.Dense(8, name="d")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    with pytest.raises(PruningError, match=r"d: soft \(Softmax\) does something.*head: goes out"):
        tfkit.plan_channel_pruning(model, ratio=0.5)
