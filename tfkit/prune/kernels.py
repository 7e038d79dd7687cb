"""What can be pruned: the kernels of a model, and how each is read as a matrix."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import keras
from keras import layers

from tfkit import graph
from tfkit.errors import ArgumentTypeError
from tfkit.prune.mask import Layout

KERNELS = {
    "kernel",
    "recurrent_kernel",
    "depthwise_kernel",
    "pointwise_kernel",
    "embeddings",
    "reverse_embeddings",
}
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)


class Weight(NamedTuple):
    """A weight at its place, and why it is not prunable; None if it is."""

    path: str
    layer: keras.Layer
    variable: keras.Variable
    obstacle: str | None

    @property
    def name(self) -> str:
        """The weight's name below its layer's path."""
        return f"{self.path}/{self.variable.name}"

    @property
    def layout(self) -> Layout:
        """How the weight is read as a matrix."""
        return layout_of(self.layer, self.variable)


def weights_of(root: keras.Layer) -> Iterator[Weight]:
    """Yields every weight of a built model or layer once, with what keeps it from being pruned."""
    nodes = graph.walk(root) if isinstance(root, keras.Model) else [graph.read_node(root, root.name)]
    seen: set[int] = set()

    def read(nodes: Iterable[graph.Node], named: set[int] | None) -> Iterator[Weight]:
        for node in nodes:
            inside = _named_by(node.layer, node.path, named)
            for variable in graph.own_variables(node.layer):
                if id(variable) not in seen:
                    seen.add(id(variable))
                    yield Weight(node.path, node.layer, variable, _obstacle(variable, inside))
            yield from read(node.children, inside)

    yield from read(nodes, None)


def _named_by(layer: keras.Layer, path: str, named: set[int] | None) -> set[int] | None:
    """Returns what a layer that says so names as prunable in it and below, else what was named above."""
    if not hasattr(layer, "get_prunable_weights"):
        return named
    weights = layer.get_prunable_weights()
    if not isinstance(weights, list | tuple) or not all(isinstance(each, keras.Variable) for each in weights):
        raise ArgumentTypeError(
            "`get_prunable_weights()` must return a list of the layer's weights. "
            f"Received: an object of type {type(weights).__name__} from {path} ({type(layer).__name__}). "
            "Return [self.kernel], or [] for none."
        )
    return {id(each) for each in weights}


def _obstacle(variable: keras.Variable, named: set[int] | None) -> str | None:
    if named is not None and id(variable) not in named:
        return "the layer does not name it as prunable"
    if named is None and len(variable.shape) < 2:
        return "one-dimensional"
    if named is None and variable.name not in KERNELS:
        return "no kernel"
    if "float" not in variable.dtype:
        return f"not floating-point ({variable.dtype})"
    return None


def layout_of(layer: keras.Layer, variable: keras.Variable) -> Layout:
    """Returns how a layer's kernel is read as a matrix."""
    rank = len(variable.shape)
    positions = tuple(range(rank - 2))
    if rank < 2:
        return Layout.of_matrix(rank)
    if isinstance(layer, DEPTHWISE) or variable.name == "depthwise_kernel":
        return Layout(positions, (), (rank - 2, rank - 1))
    if isinstance(layer, CONVOLUTIONS + SEPARABLE) or type(layer).__name__ == "ConvLSTMCell":
        return Layout(positions, (rank - 2,), (rank - 1,))
    if isinstance(layer, TRANSPOSED):
        return Layout(positions, (rank - 1,), (rank - 2,))
    if isinstance(layer, layers.EinsumDense) and variable.name == "kernel":
        operands, result = layer.equation.replace("...", "").split("->")
        given, kernel = operands.split(",")
        summed = tuple(axis for axis, letter in enumerate(kernel) if letter in given and letter not in result)
        return Layout((), summed, tuple(axis for axis in range(rank) if axis not in summed))
    return Layout.of_matrix(rank)
