"""The work of a model, against products of sizes written out by hand."""

import keras
import pytest
from keras import layers

import tfkit


def picture_net(size=(8, 8)):
    inputs = keras.Input((*size, 3))
    x = layers.Conv2D(4, 3, padding="same", name="wide")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.DepthwiseConv2D(3, name="depth")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="last")(x))


def test_each_layer_that_multiplies_has_a_row():
    table = tfkit.flops_table(picture_net())
    expected = {"wide": 2 * 64 * 27 * 4, "depth": 2 * 36 * 9 * 4, "last": 2 * 4 * 5}
    assert dict(zip(table.path, table.flops, strict=True)) == expected
    assert table.attrs["uncounted"] == ()


def test_the_sum_is_what_channel_pruning_counts():
    model = picture_net()
    assert (
        tfkit.flops_table(model).flops.sum() == tfkit.plan_channel_pruning(model, ratio=0.5).before["flops"]
    )


def test_a_layer_that_is_called_twice_counts_twice():
    inputs = keras.Input((6,))
    shared = layers.Dense(6, name="shared")
    table = tfkit.flops_table(keras.Model(inputs, shared(shared(inputs))))
    assert table.values.tolist() == [["shared", 2 * 2 * 36]]


def test_open_sizes_are_given():
    table = tfkit.flops_table(picture_net((None, None)), input_shape=(8, 8, 3))
    assert table.equals(tfkit.flops_table(picture_net()))


def test_a_model_without_kernels_has_no_rows():
    inputs = keras.Input((6,))
    table = tfkit.flops_table(keras.Model(inputs, layers.ReLU()(inputs)))
    assert list(table.columns) == ["path", "flops"]
    assert table.empty


def test_open_sizes_are_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"must be known.*Received: model=.*Pass input_shape"):
        tfkit.flops_table(picture_net((None, None)))


def test_what_is_no_model_is_refused():
    with pytest.raises(tfkit.ArgumentTypeError):
        tfkit.flops_table(3)
