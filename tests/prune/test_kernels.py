"""How a kernel is read as a matrix, against what each output's gradient reaches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import models
from tfkit.prune.kernels import layout_of, weights_of

# layer, shape of one input, the weight, how many outputs share a column
CASES = {
    "dense": (lambda: layers.Dense(5), (4,), "kernel"),
    "conv1d": (lambda: layers.Conv1D(4, 3), (6, 2), "kernel"),
    "conv2d": (lambda: layers.Conv2D(4, (3, 2)), (5, 5, 3), "kernel"),
    "conv3d": (lambda: layers.Conv3D(3, 2), (3, 3, 3, 2), "kernel"),
    "conv2d_grouped": (lambda: layers.Conv2D(4, 3, groups=2), (4, 4, 6), "kernel"),
    "conv1d_transpose": (lambda: layers.Conv1DTranspose(4, 3), (4, 2), "kernel"),
    "conv2d_transpose": (lambda: layers.Conv2DTranspose(4, 3), (4, 4, 2), "kernel"),
    "conv3d_transpose": (lambda: layers.Conv3DTranspose(3, 2), (2, 2, 2, 2), "kernel"),
    "depthwise_conv1d": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (6, 3), "kernel"),
    "depthwise_conv2d": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 3), "kernel"),
    "separable_pointwise": (lambda: layers.SeparableConv2D(4, 3), (5, 5, 3), "pointwise_kernel"),
    "einsum_heads": (lambda: layers.EinsumDense("ab,bcd->acd", (2, 3)), (4,), "kernel"),
    "einsum_back": (lambda: layers.EinsumDense("abcd,cde->abe", (None, 5)), (3, 2, 4), "kernel"),
    "einsum_ellipsis": (lambda: layers.EinsumDense("...x,xy->...y", 5), (3, 4), "kernel"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_column_holds_what_one_output_feature_sums(case):
    make, shape, name = CASES[case]
    keras.utils.set_random_seed(0)
    layer = make()
    x = tf.constant(np.random.default_rng(0).normal(size=(2, *shape)), "float32")
    features = layer(x).shape[1:] if case.startswith("einsum_heads") else layer(x).shape[-1:]
    kernel = next(variable for variable in layer.weights if variable.name == name)
    layout = layout_of(layer, kernel)
    rows, columns = layout.matrix_shape(kernel.shape)
    assert columns == np.prod(features)
    assert rows * columns == np.prod(kernel.shape)
    for number, feature in enumerate(np.ndindex(*features)):
        with tf.GradientTape() as tape:
            tape.watch(kernel.value)
            y = layer(x)
            picked = tf.reduce_sum(y[(..., *feature)] ** 2)
        touched = np.asarray(layout.to_matrix(tf.not_equal(tape.gradient(picked, kernel.value), 0)))
        assert touched[:, number].all()
        assert not np.delete(touched, number, axis=1).any()


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        ("dense", (1, 4, 5)),
        ("conv2d", (6, 3, 4)),
        ("conv2d_grouped", (9, 3, 4)),
        ("conv2d_transpose", (9, 2, 4)),
        ("depthwise_conv2d", (9, 1, 6)),
        ("separable_pointwise", (1, 3, 4)),
        ("einsum_heads", (1, 4, 6)),
        ("einsum_back", (1, 8, 5)),
    ],
)
def test_positions_inputs_and_outputs(case, sizes):
    make, shape, name = CASES[case]
    layer = make()
    layer.build((None, *shape))
    kernel = next(variable for variable in layer.weights if variable.name == name)
    assert layout_of(layer, kernel).sizes(kernel.shape) == sizes


def test_the_depthwise_part_of_a_separable_convolution_has_one_input():
    layer = layers.SeparableConv2D(4, 3)
    layer.build((None, 5, 5, 3))
    assert layout_of(layer, layer.depthwise_kernel).sizes(layer.depthwise_kernel.shape) == (9, 1, 3)


def test_the_cell_of_a_recurrent_convolution_is_read_as_a_convolution():
    layer = layers.ConvLSTM2D(2, 3)
    layer.build((None, 4, 8, 8, 6))
    for kernel, inputs in ((layer.cell.kernel, 6), (layer.cell.recurrent_kernel, 2)):
        assert layout_of(layer.cell, kernel).sizes(kernel.shape) == (9, inputs, 8)


def test_other_kernels_have_their_outputs_last():
    model = models.sequence_net()
    sizes = {
        weight.name: weight.layout.sizes(weight.variable.shape)
        for weight in weights_of(model)
        if weight.obstacle is None and "cell" in weight.path
    }
    assert sizes["lstm/lstm_cell/kernel"] == (1, 4, 12)
    assert sizes["lstm/lstm_cell/recurrent_kernel"] == (1, 3, 12)


def test_a_vector_that_a_layer_names_as_prunable_is_a_column_of_outputs():
    class Scale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale")

        def call(self, x):
            return x * self.scale

        def get_prunable_weights(self):
            return [self.scale]

    model = keras.Sequential([keras.Input((6,)), Scale(name="own")])
    (weight,) = weights_of(model)
    assert weight.obstacle is None
    assert weight.layout.matrix_shape((6,)) == (1, 6)


@pytest.mark.parametrize(
    "build", [models.nested_net, models.subclassed_net, models.shared_net, models.tied_net]
)
def test_every_weight_is_listed_once(build):
    model = build()
    listed = [id(weight.variable) for weight in weights_of(model)]
    assert sorted(listed) == sorted({id(variable) for variable in model.weights})


def test_a_layer_alone_is_walked_with_what_is_inside():
    layer = layers.Bidirectional(layers.GRU(2), name="both")
    layer.build((None, 3, 4))
    prunable = [weight.path for weight in weights_of(layer) if weight.obstacle is None]
    assert len(prunable) == 4
    assert all(path.startswith("both/") for path in prunable)
