"""Every kind of layer, and every way of putting layers together, is pruned to the weight."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.prune.test_magnitude import RNG, always, compiled, kept


def embedding_net():
    words = layers.Embedding(12, 6, name="words")
    return keras.Sequential([keras.Input((5,), dtype="int32"), words, layers.Flatten(), layers.Dense(2)])


def stacked_cells():
    cells = [layers.LSTMCell(3), layers.GRUCell(4)]
    return keras.Sequential([keras.Input((5, 4)), layers.RNN(cells), layers.Dense(2)])


def einsum_net():
    inputs = keras.Input((5, 4))
    x = layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="heads")(inputs)
    x = layers.SimpleRNN(3)(layers.Reshape((5, 6))(x))
    return keras.Model(inputs, layers.Dense(2)(x))


# how to build it, the shape of one input, how many kernels it has
NETS = {
    "embedding": (embedding_net, (5,), 2),
    "sequence": (models.sequence_net, (5, 4), 12),
    "stacked cells": (stacked_cells, (5, 4), 5),
    "einsum": (einsum_net, (5, 4), 4),
    "shared": (models.shared_net, (4,), 3),
    "tied": (models.tied_net, (6,), 1),
    "twins": (models.twins_net, (6,), 3),
    "gated": (models.gated_net, (6,), 3),
    "root weight": (models.root_weight_net, (6,), 1),
    "deep": (models.deep_net, (4,), 6),
    "nested": (models.nested_net, (8, 8, 3), 4),
    "subclassed": (models.subclassed_net, (8, 8, 3), 3),
}


def trained(build, shape, **options):
    model = tfkit.prune_low_magnitude(build(), always(0.5), **options)
    x = RNG.integers(12, size=(4, *shape)) if build is embedding_net else RNG.normal(size=(4, *shape))
    compiled(model).fit(x, np.zeros(model(x).shape), verbose=0)
    table = tfkit.sparsity_table(model)
    return table[table.status == "pruned"]


@pytest.mark.parametrize("name", NETS)
def test_every_kernel_is_pruned_exactly(name):
    build, shape, kernels = NETS[name]
    pruned = trained(build, shape)
    assert len(pruned) == kernels
    zeros = (pruned.sparsity * pruned.parameters).round()
    assert zeros.tolist() == [size - kept(size, 0.5) for size in pruned.parameters]


@pytest.mark.parametrize("name", NETS)
def test_the_kernels_together_are_pruned_exactly(name):
    build, shape, kernels = NETS[name]
    pruned = trained(build, shape, scope="global")
    assert len(pruned) == kernels
    total = pruned.parameters.sum()
    assert round((pruned.sparsity * pruned.parameters).sum()) == total - kept(total, 0.5)


class Own(layers.Layer, tfkit.PrunableLayer):
    """A layer that names its prunable weight, of a name and a rank of its own."""

    def build(self, shape):
        self.table = self.add_weight(shape=(3, shape[-1], 2), name="table")
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        return keras.ops.einsum("bi,kij->bj", x, self.table) + x @ self.kernel

    def get_prunable_weights(self):
        return [self.table]


def test_a_layer_of_ones_own_names_what_is_pruned():
    model = keras.Sequential([keras.Input((6,)), Own(name="own")])
    compiled(tfkit.prune_low_magnitude(model, always(0.75))).fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)
    rows = tfkit.sparsity_table(model).set_index("variable")
    assert rows.loc["table", ["status", "sparsity"]].tolist() == ["pruned", 0.75]
    assert rows.loc["kernel", ["status", "reason"]].tolist() == [
        "skipped", "the layer does not name it as prunable"
    ]  # fmt: skip


class Composite(layers.Layer):
    """A layer of layers that decides for all that is inside."""

    def __init__(self, named, **kwargs):
        super().__init__(**kwargs)
        self.named = named
        self.d, self.e = layers.Dense(4, name="d"), layers.Dense(4, name="e")

    def build(self, shape):
        self.d.build(shape)
        self.e.build((None, 4))

    def call(self, x):
        return self.e(self.d(x))

    def get_prunable_weights(self):
        return self.named(self)


@pytest.mark.parametrize(
    ("named", "pruned"), [(lambda self: [self.d.kernel], ["w/d"]), (lambda self: [], [])], ids=["one", "none"]
)
def test_what_a_composite_names_holds_for_its_sublayers(named, pruned):
    stack = [Composite(named, name="w"), layers.Dense(2, name="head")]
    model = tfkit.prune_low_magnitude(keras.Sequential([keras.Input((6,)), *stack]))
    table = tfkit.sparsity_table(model)
    assert table[table.status == "pruned"].path.tolist() == [*pruned, "head"]


@pytest.mark.parametrize("named", [lambda self: None, lambda self: self.d.kernel, lambda self: ["kernel"]])
def test_a_layer_that_names_no_list_of_weights_is_refused(named):
    model = keras.Sequential([keras.Input((6,)), Composite(named, name="w")])
    with pytest.raises(
        tfkit.ArgumentTypeError, match=r"must return a list.*from w \(Composite\).*\[self\.kernel\]"
    ):
        tfkit.prune_low_magnitude(model)


def test_a_kernel_under_an_adapter_waits():
    model = models.dense_net(units=(8,))
    model.get_layer("d1").enable_lora(2)
    before = np.array(model.get_layer("d1")._kernel)
    compiled(tfkit.prune_low_magnitude(model, always(0.5))).fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)
    np.testing.assert_array_equal(model.get_layer("d1")._kernel, before)
    rows = tfkit.sparsity_table(model).set_index(["path", "variable"])
    assert rows.loc[("d1", "kernel"), "reason"].startswith("frozen")


def test_a_transposed_convolution_stays_finite():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2DTranspose(4, 3, strides=2, name="up")])
    tfkit.prune_low_magnitude(model, always(0.8))
    history = compiled(model).fit(
        RNG.normal(size=(4, 6, 6, 2)), RNG.normal(size=(4, 13, 13, 4)), epochs=3, verbose=0
    )
    assert np.isfinite(history.history["loss"]).all()
    assert np.count_nonzero(model.get_layer("up").kernel) == kept(72, 0.8)


# --- layers that a TFMOT script wraps by themselves ------------------------------------------------


def counts_of(model):
    compiled(model).fit(RNG.normal(size=(8, 6)), RNG.normal(size=(8, 2)), verbose=0)
    return [int(np.count_nonzero(layer.kernel)) for layer in model.layers if hasattr(layer, "kernel")]


def test_a_layer_inside_sequential():
    pruned = tfkit.prune_low_magnitude(layers.Dense(8, "relu"), always(0.75))
    model = keras.Sequential([keras.Input((6,)), pruned, layers.Dense(2)])
    assert isinstance(model.layers[0], layers.Dense)
    assert counts_of(model) == [12, 16]


def test_layers_in_a_list_before_anything_is_built():
    stack = [layers.Dense(8), layers.ReLU(), layers.Dense(2)]
    model = keras.Sequential(tfkit.prune_low_magnitude(stack, always(0.75)))
    assert counts_of(model) == [12, 4]


@pytest.mark.parametrize("functional", [False, True], ids=["Sequential", "functional"])
def test_a_clone_function_of_tfmots_guide(functional):
    base = models.dense_net()
    if functional:
        base = keras.Model(base.inputs, base.outputs)

    def apply_pruning(layer):
        named = isinstance(layer, layers.Dense) and layer.name != "head"
        return tfkit.prune_low_magnitude(layer, always(0.75)) if named else layer

    model = keras.models.clone_model(base, clone_function=apply_pruning)
    expect_equal(model.get_weights(), base.get_weights())
    assert counts_of(model) == [12, 8, 8]
    tfkit.strip_pruning(model)
    assert all(variable.constraint is None for variable in model.variables)


def test_a_built_layer_is_pruned_at_once():
    model = models.dense_net()
    layer = model.get_layer("d1")
    assert tfkit.prune_low_magnitude(layer, always(0.75)) is layer
    assert counts_of(model) == [12, 32, 8]


def test_a_wrapper_of_layers():
    both = tfkit.prune_low_magnitude(layers.Bidirectional(layers.GRU(2)), always(0.5))
    model = keras.Sequential([keras.Input((5, 4)), both])
    compiled(model).fit(np.ones((2, 5, 4)), np.ones((2, 4)), verbose=0)
    assert [np.count_nonzero(v) / np.prod(v.shape) for v in both.weights if "bias" not in v.name] == [0.5] * 4


def test_the_hook_of_an_unbuilt_layer_is_gone_once_it_is_built():
    layer, plain = layers.Dense(8), layers.Dense(8)
    tfkit.prune_low_magnitude(layer)
    for each in (layer, plain):
        each.build((None, 4))
    assert layer.build.__qualname__ == plain.build.__qualname__
    assert layer.kernel.constraint is not None


def test_a_layer_twice_is_refused():
    layer = layers.Dense(8, name="twice")
    layer.build((None, 4))
    tfkit.prune_low_magnitude(layer)
    with pytest.raises(tfkit.PruningError, match=r"pruned once.*Received: twice/kernel"):
        tfkit.prune_low_magnitude(layer)


@pytest.mark.parametrize("what", [layers.Dense(2), [layers.Dense(2)]], ids=["layer", "list"])
def test_patterns_beside_layers_are_refused(what):
    with pytest.raises(tfkit.ArgumentError, match=r"are about the layers of a model.*Received: layers='d1'"):
        tfkit.prune_low_magnitude(what, layers="d1")


@pytest.mark.parametrize("scope", ["global", "erk"])
def test_a_scope_beside_layers_is_refused(scope):
    with pytest.raises(
        tfkit.ArgumentError, match=rf"layers of a model.*scope='{scope}' beside a single layer"
    ):
        tfkit.prune_low_magnitude(layers.Dense(2), scope=scope)


def wrapping(kind):
    """A model or layer whose layers are wrapped where they are made, and built when it is called."""

    class Wrapping(kind):
        def __init__(self):
            super().__init__()
            self.a = tfkit.prune_low_magnitude(layers.Dense(24, name="a"), always(0.75))
            self.b = tfkit.prune_low_magnitude(layers.Dense(8, name="b"), always(0.75))

        def call(self, x):
            return self.b(self.a(x))

    return Wrapping()


@pytest.mark.parametrize("way", ["fit", "call", "block"])
def test_layers_that_are_built_when_a_model_is_called(way):
    block = way == "block"
    model = keras.Sequential([keras.Input((6,)), wrapping(layers.Layer)]) if block else wrapping(keras.Model)
    if way == "call":
        model(np.ones((1, 6), "float32"))
    compiled(model).fit(RNG.normal(size=(8, 6)), RNG.normal(size=(8, 8)), verbose=0)
    pruned = [weight for weight in model.weights if weight.name == "kernel"]
    assert [np.count_nonzero(weight) for weight in pruned] == [36, 48]
    tfkit.strip_pruning(model)
    assert all(variable.constraint is None for variable in model.variables)


def test_an_unbuilt_layer_twice_is_refused():
    layer = tfkit.prune_low_magnitude(layers.Dense(8, name="twice"))
    with pytest.raises(tfkit.PruningError, match=r"pruned once.*Received: twice, which will be as soon as"):
        tfkit.prune_low_magnitude(layer)


def test_an_unbuilt_layer_that_does_not_fit_is_refused_at_every_build():
    layer = tfkit.prune_low_magnitude(layers.Dense(8, name="odd"), block_size=(4, 4))
    for _ in range(2):
        with pytest.raises(tfkit.PruningError, match=r"does not fit odd/kernel \(6 x 8\)"):
            layer.build((None, 6))


def test_of_a_list_all_or_none_are_pruned():
    fits, other = layers.Dense(8), layers.Dense(8)
    fits.build((None, 4))
    other.build((None, 6))
    with pytest.raises(tfkit.PruningError, match="does not fit"):
        tfkit.prune_low_magnitude([fits, other], block_size=(4, 4))
    assert fits.kernel.constraint is None


def test_an_empty_list_is_no_model():
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model=\[\]"):
        tfkit.prune_low_magnitude([])


def test_tfmots_scope_does_no_harm(tmp_path):
    model = models.dense_net()
    model.save(tmp_path / "model.keras")
    with tfkit.prune_scope():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert counts_of(tfkit.prune_low_magnitude(loaded, always(0.75))) == [12, 8, 2]
