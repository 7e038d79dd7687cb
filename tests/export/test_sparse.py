"""The rewrite for the sparse kernels computes what the old model did, whatever stands in it."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.export.rewritable import MODELS, bottleneck, norm, on_picture, pool, start
from tests.export.sparse_graphs import enlivened, thinned
from tfkit import graph
from tfkit.export.sparse import make_sparse_ready


def built(name):
    """Returns a model whose statistics and weights are those of no fresh one."""
    keras.utils.set_random_seed(0)
    return livened(MODELS[name]() if isinstance(name, str) else name())


def livened(model):
    generator = np.random.default_rng(3)
    for _, variable in graph.learnable(model):
        if len(variable.shape) == 1:
            low, high = (0.5, 1.5) if variable.name == "gamma" else (-0.3, 0.3)
            variable.assign(generator.uniform(low, high, variable.shape))
    for node in graph.descend(graph.walk(model)):
        if isinstance(node.layer, layers.BatchNormalization):
            shape = node.layer.moving_mean.shape
            node.layer.moving_mean.assign(generator.normal(0, 0.3, shape))
            node.layer.moving_variance.assign(generator.uniform(0.5, 2, shape))
    return model


def pictures(model, count=3):
    generator = np.random.default_rng(1)
    arrays = [generator.random((count, *x.shape[1:]), dtype="float32") for x in model.inputs]
    return keras.tree.pack_sequence_as(graph.input_structure(model), arrays)


def require_same(old, new, tolerance=1e-5):
    x = pictures(old)
    wanted, got = old(x, training=False), new(x, training=False)
    keras.tree.assert_same_structure(wanted, got)
    for one, other in zip(keras.tree.flatten(wanted), keras.tree.flatten(got), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.abs(one[0] - one[1]).max() > 1e-3 * np.abs(one).max()  # it depends on the picture
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * np.abs(one).max())


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same(name):
    model = built(name)
    require_same(model, make_sparse_ready(model))


@given(st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_networks_compute_the_same(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    def net(x):
        x = start(x, 4)
        for _ in range(draw(1, 2, 3, 4)):
            kind = draw(
                "convolution", "depthwise", "separable", "padded", "norm", "relu", "gate", "add", "max"
            )
            kernel, strides, padding = draw(1, 2, 3, 5), draw(1, 2, 3), draw("same", "valid")
            if kind == "convolution":
                x = layers.Conv2D(4, kernel, strides, padding=padding)(x)
            elif kind == "depthwise":
                x = layers.DepthwiseConv2D(kernel, strides, padding=padding)(x)
            elif kind == "separable":
                x = layers.SeparableConv2D(4, kernel, strides=strides, padding="same")(x)
            elif kind == "padded":
                sides = tuple((draw(0, 1, 2), draw(0, 1, 2)) for _ in "hw")
                x = layers.Conv2D(4, min(kernel, 3), strides)(layers.ZeroPadding2D(sides)(x))
            elif kind == "norm":
                x = norm(x)
            elif kind == "relu":
                x = layers.LeakyReLU()(x)
            elif kind == "gate":
                x = layers.Multiply()([x, layers.Conv2D(4, 1, activation="sigmoid")(pool(x, keepdims=True))])
            elif kind == "add":
                x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
            elif min(x.shape[1:3]) > 1:
                x = layers.MaxPooling2D(2, draw(1, 2), padding=padding)(x)
            x = layers.UpSampling2D(5)(x) if min(x.shape[1:3]) < 5 else x
        return layers.Conv2D(2, 1)(x) if draw(False, True) else layers.Dense(2)(pool(x))

    model = built(lambda: on_picture(net, (draw(17, 24, 31), draw(18, 33))))
    require_same(model, make_sparse_ready(model), 1e-4)


def test_a_mixed_policy_elsewhere_changes_nothing():
    model = built("paddings_of_all_kinds")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        new = make_sparse_ready(model)
    finally:
        keras.config.set_dtype_policy("float32")
    computing = [layer for layer in new.layers if not isinstance(layer, layers.InputLayer)]
    assert {layer.compute_dtype for layer in computing} == {"float32"}
    require_same(model, new)


def test_a_model_with_names_from_a_file_is_rewritten(tmp_path):
    """A loaded model's names are those that Keras would give to new layers."""
    keras.backend.clear_session()
    built("paddings_of_all_kinds").save(tmp_path / "m.keras")
    keras.backend.clear_session()
    model = keras.models.load_model(tmp_path / "m.keras")
    new = make_sparse_ready(model)
    assert "conv2d_padding" in {layer.name for layer in new.layers}
    require_same(model, new)


def test_the_old_model_is_untouched():
    model = built("nested_called_twice")
    before = [np.array(each) for each in model.get_weights()]
    nodes = graph.descend(graph.walk(model))
    calls = {node.path: len(node.layer._inbound_nodes) for node in nodes}
    make_sparse_ready(model)
    expect_equal(before, model.get_weights())
    assert {node.path: len(node.layer._inbound_nodes) for node in graph.descend(graph.walk(model))} == calls


def test_zeros_stay_zeros():
    model = thinned(enlivened(built("residual")), 0.8)
    new = make_sparse_ready(model)
    kernels = [each for each in model.layers if type(each) is layers.Conv2D and each.kernel_size == (1, 1)]
    assert len(kernels) == 4
    for layer in kernels:
        np.testing.assert_array_equal(
            np.asarray(new.get_layer(layer.name).kernel) == 0, np.asarray(layer.kernel) == 0
        )


def test_the_norms_are_gone_and_the_stem_is_padded_on_all_sides():
    new = make_sparse_ready(built("residual"))
    assert not any(isinstance(each, layers.BatchNormalization) for each in new.layers)
    paddings = [each.padding for each in new.layers if isinstance(each, layers.ZeroPadding2D)]
    assert paddings == [((1, 1), (1, 1))]


LOAD = """
import sys
sys.modules["tfkit"] = None
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model(np.load(sys.argv[2])))
"""


def test_a_saved_one_loads_without_tfkit(tmp_path):
    model = built("preprocessing_in_front")
    x = pictures(model)
    np.save(tmp_path / "x.npy", x)
    make_sparse_ready(model).save(tmp_path / "m.keras")
    files = [str(tmp_path / name) for name in ("m.keras", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x), rtol=1e-4, atol=1e-5)


def test_input_shape_fixes_sizes():
    inputs = keras.Input((None, None, 3))
    model = livened(keras.Model(inputs, pool(bottleneck(norm(start(inputs)), strides=2))))
    new = make_sparse_ready(model, input_shape=(31, 22, 3))
    assert new.input_shape == (None, 31, 22, 3)
    require_same(keras.Model(i := keras.Input((31, 22, 3)), model(i)), new)


def test_open_sizes_are_refused():
    inputs = keras.Input((None, 16, 3))
    model = keras.Model(inputs, pool(start(inputs)), name="open")
    with pytest.raises(tfkit.ExportError, match=r"must be known.*'open'.*None, 16, 3.*input_shape=\("):
        make_sparse_ready(model)


def test_a_subclassed_model_is_refused():
    with pytest.raises(
        tfkit.ExportError, match=r"functional or Sequential.*'subclassed'.*keras\.Model\(inputs"
    ):
        make_sparse_ready(models.subclassed_net())


def test_nan_is_refused():
    model = built("residual")
    model.layers[-1].bias.assign(np.full(4, np.nan))
    with pytest.raises(tfkit.NonFiniteWeightsError):
        make_sparse_ready(model)


def test_no_model_is_refused():
    with pytest.raises(tfkit.ArgumentTypeError):
        make_sparse_ready("model.keras")


class Secretive(layers.Layer):
    """Does not tell how it was made."""

    def __init__(self, factor):
        super().__init__(name="secret")
        self.factor = factor

    def call(self, x):
        return x * self.factor


def test_a_layer_that_does_not_tell_its_configuration_is_refused():
    model = on_picture(lambda x: pool(Secretive(2)(start(x))))
    with pytest.raises(
        tfkit.ExportError, match=r"(?s)from its configuration.*'secret', a Secretive.*get_config"
    ):
        make_sparse_ready(model)


class Forgetful(layers.Layer):
    """Leaves half of what it is out of its configuration."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return layers.Layer.get_config(self)


def test_a_network_that_comes_out_otherwise_is_refused():
    model = on_picture(lambda x: pool(Forgetful(2.0)(start(x))))
    with pytest.raises(tfkit.ExportError, match=r"must compute what the old one does.*largest difference"):
        make_sparse_ready(model)
