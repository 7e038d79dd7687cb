"""How channels pass through each kind of layer: the rules that couple them.

A rule is for one class as Keras wrote it; a subclass that computes or builds in its own way
has no rule. What has no rule keeps all channels that come in, and all that go out: nothing
is guessed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfkit import graph
from tfkit.prune.coupling import Coupling, Dimensions, Labels, placed

UNKNOWN = "does something to its channels that tfkit does not know"
ONE_EACH = "mixes all channels"
MOVES_BATCH = "moves what is in a sample to other samples"

# keras.activations that compute each number from itself alone
# fmt: off
ELEMENTWISE = frozenset({
    "relu", "leaky_relu", "relu6", "celu", "elu", "selu", "softplus", "softsign", "squareplus", "soft_shrink",
    "sparse_plus", "silu", "gelu", "tanh", "tanh_shrink", "threshold", "sigmoid", "sparse_sigmoid",
    "exponential", "hard_sigmoid", "hard_silu", "hard_tanh", "hard_shrink", "linear", "mish", "log_sigmoid",
})
# fmt: on


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer or operation at its place in the graph, with the labels that come in.

    Attributes:
        call: The call.
        given: Labels of the tensors that come in.
        coupling: Where to write what is found.
    """

    call: graph.Call
    given: list[Labels]
    coupling: Coupling

    @property
    def path(self) -> str:
        """Path of the layer."""
        return self.call.path

    @property
    def operation(self) -> Any:
        """The layer or operation."""
        return self.call.operation

    @property
    def shapes(self) -> list[Dimensions]:
        """Shapes of the tensors that come in, without the batch."""
        return [tuple(x.shape[1:]) for x in self.call.arguments.keras_tensors]

    @property
    def results(self) -> list[Dimensions]:
        """Shapes of the tensors that go out, without the batch."""
        return [tuple(x.shape[1:]) for x in self.call.results]

    @property
    def masks(self) -> list[int]:
        """Numbers of the tensors that come in as masks, which tell what counts and hold no channels."""
        kwargs = self.call.arguments.kwargs
        masks = {id(each) for name, each in kwargs.items() if name.endswith("mask")}
        return [i for i, x in enumerate(self.call.arguments.keras_tensors) if id(x) in masks]

    @property
    def axis(self) -> int:
        """The axis of the channels, without the batch."""
        return 0 if getattr(self.operation, "data_format", None) == "channels_first" else -1

    def read(self, place: int = 0, axis: int | None = None) -> Labels:
        """Returns one label for each channel that weights read from a tensor that comes in."""
        axis = self.axis if axis is None else axis
        line = self.coupling.along(self.given[place], axis, self.shapes[place][axis])
        self.coupling.read(self.call.inputs[place], axis, line)
        return line

    def use(
        self, variable: keras.Variable | None, axis: int, line: Labels, role: Any, parts: int = 1
    ) -> None:
        """Notes the labels along an axis of one of the layer's weights."""
        self.coupling.use(self.path, variable, axis, line, role, parts)

    def size(self, key: str, *axes: Labels | int, **options: bool) -> None:
        """Notes an entry of the layer's configuration that counts channels."""
        self.coupling.size(self.operation, key, *axes, **options)

    def work(self, factor: float, *axes: Labels) -> None:
        """Notes multiply-adds of the layer."""
        self.coupling.work(self.path, self.call.outputs[0], factor, *axes)

    def make(self, line: Labels, axis: int | None = None) -> Labels:
        """Returns new channels as labels of the tensor that goes out, after the layer's activation."""
        activation = getattr(self.operation, "activation", None)
        if activation is not None and not is_elementwise(activation):
            name = getattr(activation, "__name__", type(activation).__name__)
            self.coupling.keep(line, f"{self.path} has the activation {name}, which {ONE_EACH}")
        return placed(line, self.axis if axis is None else axis, len(self.results[0]))

    def stop(self, why: str = UNKNOWN) -> list[Labels]:
        """Keeps all channels that come in and go out, for a reason."""
        reason = self.coupling.stop(self.path, self.operation, why)
        for labels in self.given:
            self.coupling.keep(labels, reason)
        return [self.coupling.whole(len(shape), reason) for shape in self.results]


Rule = Callable[[Site], Labels | list[Labels]]
RULES: dict[type, Rule] = {}


def rule(*classes: type) -> Callable[[Rule], Rule]:
    """Registers a rule for classes."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(classes, function))
        return function

    return register


def pass_channels(call: graph.Call, given: list[Labels], coupling: Coupling) -> list[Labels]:
    """Applies the rule of a call and returns the labels of the tensors that go out."""
    site = Site(call, given, coupling)
    operation = call.operation
    for number in site.masks:
        coupling.keep(given[number], f"{site.path} takes it as a mask")
    if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
        return site.stop("is quantized or has a LoRA adapter")
    known = _rule_of(operation)
    if known is None:
        return site.stop()
    answer = known(site)
    return answer if isinstance(answer, list) else [answer]


def _rule_of(operation: keras.Operation) -> Rule | None:
    """Returns the rule of the class that decides what an operation computes."""
    own = type(operation)
    for base in own.__mro__:
        if base in RULES:
            return RULES[base] if _inherits(own, base) else None
    return BY_NAME.get(own.__name__) if own.__module__.startswith("keras.src.") else None


# what a subclass may write anew without computing anything else
HARMLESS = frozenset({"__init__", "__module__", "__doc__", "get_config", "from_config", "__annotations__"})


def _inherits(own: type, base: type) -> bool:
    """Tells whether a class takes over all that decides what a class of Keras computes.

    Not only `call` and `build`: Keras offers `Conv2D.convolution_op` to subclasses, too.
    """
    between = own.__mro__[: own.__mro__.index(base)]
    return all(name in HARMLESS or not hasattr(base, name) for each in between for name in vars(each))


def is_elementwise(activation: Any) -> bool:
    """Tells whether an activation computes each number from itself alone, as far as is known."""
    name = getattr(activation, "__name__", None)
    return name in ELEMENTWISE and getattr(keras.activations, name, None) is activation


def _elements(shape: Iterable[int | None]) -> float:
    """Returns how many places a shape has; open sizes count as NaN, so no cost is made up."""
    return math.prod(math.nan if size is None else size for size in shape)


def _places(shape: Sequence[int | None], axis: int) -> float:
    axis %= len(shape)
    return _elements(size for i, size in enumerate(shape) if i != axis)


# Layers with kernels


@rule(layers.Dense)
def _dense(site: Site) -> Labels:
    layer = site.operation
    taken, made = site.read(), site.coupling.fresh(layer.units)
    site.use(layer.kernel, 0, taken, "reads")
    site.use(layer.kernel, 1, made, "makes")
    site.use(layer.bias, 0, made, "accompanies")
    site.size("units", made)
    site.work(_elements(site.shapes[0][:-1]), taken, made)
    return site.make(made)


@rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _convolution(site: Site) -> Labels:
    layer, c = site.operation, site.coupling
    taken, groups = site.read(), layer.groups
    places = _places(site.results[0], site.axis) * math.prod(layer.kernel_size)
    if groups == len(taken) > 1:  # a depthwise convolution by another name
        made = np.repeat(taken, layer.filters // groups)
        site.use(layer.kernel, -1, made, "accompanies")
        site.use(layer.bias, 0, made, "accompanies")
        site.size("filters", made)
        site.size("groups", taken)
        site.work(places, made)
        return site.make(made)
    made = c.fresh(layer.filters)
    if groups > 1:  # each group keeps as many as the others
        taken = _share(c, taken, groups)[0]
        _share(c, made, groups)
    site.use(layer.kernel, -2, taken, "reads")
    site.use(layer.kernel, -1, made, "makes")
    site.use(layer.bias, 0, made, "accompanies")
    site.size("filters", made)
    site.work(places, taken, made)
    return site.make(made)


def _share(coupling: Coupling, line: Labels, groups: int) -> Labels:
    """Makes the channels at the same place of each group one, and returns them by group."""
    by_group = line.reshape(groups, -1)
    coupling.join(by_group, by_group[:1])
    return by_group


@rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed(site: Site) -> Labels:
    layer = site.operation
    taken, made = site.read(), site.coupling.fresh(layer.filters)
    site.use(layer.kernel, -1, taken, "reads")
    site.use(layer.kernel, -2, made, "makes")
    site.use(layer.bias, 0, made, "accompanies")
    site.size("filters", made)
    site.work(_places(site.shapes[0], site.axis) * math.prod(layer.kernel_size), taken, made)
    return site.make(made)


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(site: Site) -> Labels:
    layer = site.operation
    line = site.coupling.along(site.given[0], site.axis, site.shapes[0][site.axis])
    made = np.repeat(line, layer.depth_multiplier)
    site.use(layer.kernel, -2, line, "accompanies")
    site.use(layer.bias, 0, made, "accompanies")
    site.work(_places(site.results[0], site.axis) * math.prod(layer.kernel_size), made)
    return site.make(made)


@rule(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(site: Site) -> Labels:
    layer = site.operation
    taken, made = site.read(), site.coupling.fresh(layer.filters)
    between = np.repeat(taken, layer.depth_multiplier)
    site.use(layer.depthwise_kernel, -2, taken, "accompanies")
    site.use(layer.pointwise_kernel, -2, between, "reads")
    site.use(layer.pointwise_kernel, -1, made, "makes")
    site.use(layer.bias, 0, made, "accompanies")
    site.size("filters", made)
    places = _places(site.results[0], site.axis)
    site.work(places * math.prod(layer.kernel_size), between)
    site.work(places, between, made)
    return site.make(made)


@rule(layers.Embedding)
def _embedding(site: Site) -> Labels:
    layer = site.operation
    site.coupling.keep(site.given[0], f"{site.path} (Embedding) reads numbers of words")
    made = site.coupling.fresh(layer.output_dim)
    site.use(layer.embeddings, -1, made, "makes")
    site.size("output_dim", made)
    return site.make(made)


# Attention and recurrence: a head and a unit are channels of their own


@rule(layers.MultiHeadAttention)
def _attention(site: Site) -> Labels | list[Labels]:
    layer, c = site.operation, site.coupling
    arguments = dict(zip(("query", "value", "key"), site.call.arguments.args))
    arguments |= {name: each for name, each in site.call.arguments.kwargs.items() if each is not None}
    arguments.setdefault("key", arguments.get("value"))
    order = {id(x): i for i, x in enumerate(site.call.arguments.keras_tensors)}
    plain = {"query", "value", "key"} >= arguments.keys() - {"training", "use_causal_mask"}
    plain = plain and len(site.results) == 1
    plain = plain and all(len(shape) == 2 for shape in (*site.shapes, *site.results))
    if not plain or any(id(arguments[name]) not in order for name in ("query", "value", "key")):
        return site.stop("has masks, scores or axes of its own")
    heads = c.fresh(layer.num_heads)
    value_dim = layer.value_dense.kernel.shape[-1]
    tokens = {name: site.shapes[order[id(arguments[name])]][0] for name in ("query", "key", "value")}
    tokens = {name: math.nan if count is None else count for name, count in tokens.items()}
    projections = [("query", layer.query_dense), ("key", layer.key_dense), ("value", layer.value_dense)]
    if getattr(layer, "_use_gate", False):
        projections.append(("query", layer._gate_dense))
    for name, dense in projections:
        taken = site.read(order[id(arguments[name])], -1)
        site.use(dense.kernel, 0, taken, "reads")
        site.use(dense.kernel, 1, heads, "makes")
        site.use(dense.bias, 0, heads, "accompanies")
        site.work(tokens[name] * dense.kernel.shape[-1], taken, heads)
    out = layer.output_dense
    made = c.fresh(out.kernel.shape[-1])
    site.use(out.kernel, 0, heads, "reads")
    site.use(out.kernel, 2, made, "makes")
    site.use(out.bias, 0, made, "accompanies")
    site.work(tokens["query"] * value_dim, heads, made)
    site.work(tokens["query"] * tokens["key"] * (layer.key_dim + value_dim), heads)
    site.size("num_heads", heads)
    site.size("output_shape", made, scalar=False, always=True)  # by itself it follows the query
    return site.make(made, -1)


@rule(layers.SimpleRNN, layers.LSTM, layers.GRU)
def _recurrent(site: Site) -> list[Labels]:
    layer, cell = site.operation, site.operation.cell
    if len(site.given) > 1 + len(site.masks) or layer.stateful:
        return site.stop("has states of its own")
    if not is_elementwise(cell.activation) or not is_elementwise(
        getattr(cell, "recurrent_activation", cell.activation)
    ):
        return site.stop(f"has an activation that {ONE_EACH}")
    taken, made = site.read(axis=-1), site.coupling.fresh(layer.units)
    parts = cell.kernel.shape[-1] // layer.units
    gates = np.tile(made, parts)
    site.use(cell.kernel, 0, taken, "reads")
    site.use(cell.kernel, 1, gates, "makes", parts)
    site.use(cell.recurrent_kernel, 0, made, "reads")
    site.use(cell.recurrent_kernel, 1, gates, "makes", parts)
    site.use(cell.bias, -1, gates, "accompanies")
    site.size("units", made)
    steps = math.nan if site.shapes[0][0] is None else site.shapes[0][0]
    site.work(steps, taken, gates)
    site.work(steps, made, gates)
    return [placed(made, -1, len(shape)) for shape in site.results]


# Layers with a weight a channel


@rule(layers.BatchNormalization)
def _batch_norm(site: Site) -> Labels:
    layer = site.operation
    axis = layer.axis - 1 if layer.axis > 0 else layer.axis
    line = site.coupling.along(site.given[0], axis, site.shapes[0][axis])
    for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        site.use(variable, 0, line, "accompanies")
    return placed(line, axis, len(site.shapes[0]))


@rule(layers.LayerNormalization, layers.RMSNormalization)
def _layer_norm(site: Site) -> Labels | list[Labels]:
    layer, rank = site.operation, len(site.shapes[0])
    axes = {axis % (rank + 1) for axis in keras.tree.flatten(layer.axis)}
    if axes != {rank} or getattr(layer, "rms_scaling", False):
        return site.stop("normalises over other axes than the last, or in a way of its own")
    line = site.coupling.along(site.given[0], -1, site.shapes[0][-1])
    for name in ("gamma", "beta", "scale"):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            site.use(variable, 0, line, "accompanies")
    site.coupling.crowd(layer, line)
    return placed(line, -1, rank)


@rule(layers.GroupNormalization)
def _group_norm(site: Site) -> Labels | list[Labels]:
    layer, rank = site.operation, len(site.shapes[0])
    if layer.axis % (rank + 1) != rank:
        return site.stop("normalises another axis than the last")
    line = site.coupling.along(site.given[0], -1, site.shapes[0][-1])
    if layer.groups not in (-1, len(line)):
        _share(site.coupling, line, layer.groups)
        site.coupling.crowd(layer, line)
    elif layer.get_config()["groups"] != -1:
        site.size("groups", line)
    site.use(layer.gamma, 0, line, "accompanies")
    site.use(layer.beta, 0, line, "accompanies")
    return placed(line, -1, rank)


@rule(layers.PReLU)
def _prelu(site: Site) -> Labels:
    layer = site.operation
    labels = site.coupling.tied(site.given[0])
    for axis, size in enumerate(labels.shape):
        if size > 1 and layer.alpha.shape[axis] > 1:
            site.use(layer.alpha, axis, labels.reshape(-1), "accompanies")
    return labels


def _layer_scale(site: Site) -> Labels:
    line = site.coupling.along(site.given[0], -1, site.shapes[0][-1])
    site.use(site.operation.gamma, 0, line, "accompanies")
    site.size("projection_dim", line)
    return placed(line, -1, len(site.shapes[0]))


# Layers that take each channel as it is


@rule(
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Identity,
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ActivityRegularization,
)
def _elementwise(site: Site) -> Labels | list[Labels]:
    if len(site.given) != 1:
        return site.stop()
    if any(size not in (None, 1) for size in getattr(site.operation, "noise_shape", None) or ()):
        return site.stop("draws noise of a fixed shape")
    return site.given[0]


@rule(layers.Activation)
def _activation(site: Site) -> Labels | list[Labels]:
    if not is_elementwise(site.operation.activation):
        name = getattr(site.operation.activation, "__name__", "its own")
        return site.stop(f"has the activation {name}, which {ONE_EACH}")
    return site.given[0]


@rule(layers.Rescaling)
def _rescaling(site: Site) -> Labels | list[Labels]:
    if np.ndim(site.operation.scale) or np.ndim(site.operation.offset):
        return site.stop("has a number for each channel in its configuration")
    return site.given[0]


@rule(
    *(
        getattr(layers, name.format(rank))
        for rank in (1, 2, 3)
        for name in (
            "MaxPooling{}D",
            "AveragePooling{}D",
            "UpSampling{}D",
            "ZeroPadding{}D",
            "Cropping{}D",
            "AdaptiveAveragePooling{}D",
            "AdaptiveMaxPooling{}D",
        )
    ),
    layers.Resizing,
)
def _spatial(site: Site) -> Labels:
    line = site.coupling.along(site.given[0], site.axis, site.shapes[0][site.axis])
    return placed(line, site.axis, len(site.results[0]))


@rule(*(getattr(layers, f"Global{kind}Pooling{rank}D") for rank in (1, 2, 3) for kind in ("Max", "Average")))
def _global_pooling(site: Site) -> Labels:
    line = site.coupling.along(site.given[0], site.axis, site.shapes[0][site.axis])
    return placed(line, site.axis if site.operation.keepdims else 0, len(site.results[0]))


# Layers that move channels


def _reshaped(site: Site, key: str | None, leading: tuple[int, ...] = ()) -> Labels | list[Labels]:
    """Returns the labels in another shape, in Keras's order: the last axis runs fastest."""
    labels, before, after = site.coupling.compact(site.given[0]), site.shapes[0], site.results[0]
    if None not in before and None not in after and math.prod(before) != math.prod(after):
        return site.stop(MOVES_BATCH)
    if labels.size == 1:
        return labels.reshape((1,) * len(after))
    if None in before or None in after:
        return site.stop("reshapes a tensor with open sizes")
    moved = site.coupling.tied(np.broadcast_to(labels, before).reshape(after))
    if key is not None:
        site.size(key, *leading, *_sizes(moved, after), scalar=False)
    return moved


def _sizes(labels: Labels, shape: Dimensions) -> list[Labels | int]:
    """Returns for each axis the labels along it, or its size where they do not differ."""
    return [
        labels.reshape(-1) if count > 1 else size for count, size in zip(labels.shape, shape, strict=True)
    ]


@rule(layers.Flatten)
def _flatten(site: Site) -> Labels | list[Labels]:
    if site.axis == 0 and len(site.shapes[0]) > 1:
        turned = np.moveaxis(site.given[0], 0, -1)
        shape = (*site.shapes[0][1:], site.shapes[0][0])
        if turned.size > 1 and None in shape:
            return site.stop("reshapes a tensor with open sizes")
        if turned.size > 1:
            return site.coupling.compact(np.broadcast_to(turned, shape).reshape(-1))
        return turned.reshape(1)
    return _reshaped(site, None)


@rule(layers.Reshape)
def _reshape(site: Site) -> Labels | list[Labels]:
    return _reshaped(site, "target_shape")


@rule(layers.Permute)
def _permute(site: Site) -> Labels:
    return site.given[0].transpose([axis - 1 for axis in site.operation.dims])


@rule(layers.RepeatVector)
def _repeat(site: Site) -> Labels:
    return site.given[0][None]


# Layers of several tensors


@rule(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
def _merge(site: Site) -> Labels | list[Labels]:
    """Couples the channels at the same place; a size of 1 serves all places and is coupled with none."""
    if len({len(shape) for shape in site.shapes}) > 1:
        return site.stop("merges tensors of different rank")
    labels, shape = site.coupling.compact(site.given[0]), site.shapes[0]
    for other, size in zip(site.given[1:], site.shapes[1:], strict=True):
        labels, shape = _merged(site.coupling, labels, shape, site.coupling.compact(other), size)
    return labels


def _merged(
    coupling: Coupling, a: Labels, a_shape: Dimensions, b: Labels, b_shape: Dimensions
) -> tuple[Labels, Dimensions]:
    shape = tuple(y if x == 1 else x for x, y in zip(a_shape, b_shape, strict=True))
    for one, one_shape, other in ((a, a_shape, b), (b, b_shape, a)):
        varying = [axis for axis, size in enumerate(other.shape) if size > 1]
        if one.size == 1 and varying and all(one_shape[axis] == 1 for axis in varying):
            return other, shape  # one number for all channels of the other
    coupling.join(a, b)
    wide = np.broadcast_shapes(a.shape, b.shape)
    return coupling.compact(np.broadcast_to(a if a.size >= b.size else b, wide)), shape


@rule(layers.Concatenate)
def _concatenate(site: Site) -> Labels | list[Labels]:
    axis = site.operation.axis % (len(site.shapes[0]) + 1) - 1
    if axis < 0:
        return site.stop(MOVES_BATCH)
    given = [site.coupling.compact(each) for each in site.given]
    if all(each.shape[axis] == 1 for each in given) and any(s[axis] is None for s in site.shapes):
        for each in given[1:]:  # of open length, so along another axis than the channels
            site.coupling.join(given[0], each)
        return max(given, key=np.size)
    wide = np.broadcast_shapes(*((*each.shape[:axis], 1, *each.shape[axis + 1 :]) for each in given))
    parts = [
        np.broadcast_to(each, (*wide[:axis], shape[axis], *wide[axis + 1 :]))
        for each, shape in zip(given, site.shapes, strict=True)
    ]
    return site.coupling.compact(np.concatenate(parts, axis))


def _scaled_sum(site: Site) -> Labels | list[Labels]:
    if np.ndim(site.operation.scale):
        return site.stop()
    return _merge(site)


# keras.ops in a functional model, and layers that keras.applications defines


def _alone(site: Site) -> bool:
    """Tells whether everything but the tensors that come in is plain numbers or settings."""
    given = keras.tree.flatten([list(site.call.arguments.args), dict(site.call.arguments.kwargs)])
    others = [each for each in given if not isinstance(each, keras.KerasTensor)]
    return all(each is None or isinstance(each, bool | int | float | str) for each in others)


def _plain_operation(site: Site) -> Labels | list[Labels]:
    arrays = any(getattr(setting, "ndim", 0) for setting in vars(site.operation).values())
    if len(site.given) != 1 or not _alone(site) or arrays:
        return site.stop()
    return site.given[0]


def _arithmetic(site: Site) -> Labels | list[Labels]:
    if not _alone(site):
        return site.stop("computes with an array")
    return site.given[0] if len(site.given) == 1 else _merge(site)


def _division(site: Site) -> Labels | list[Labels]:
    """Divides or raises by a number; where a channel is divided by, zeros in it would spread."""
    args = site.call.arguments.args
    if len(args) != 2 or not isinstance(args[1], int | float) or isinstance(args[1], bool) or args[1] <= 0:
        return site.stop("divides or raises by a tensor")
    return site.given[0]


def _reduction(site: Site) -> Labels | list[Labels]:
    operation, rank = site.operation, len(site.shapes[0])
    if operation.axis is None or not _alone(site):
        return site.stop()
    axes = {axis % (rank + 1) - 1 for axis in keras.tree.flatten(operation.axis)}
    if -1 in axes:
        return site.stop(MOVES_BATCH)
    labels = site.coupling.compact(site.given[0])
    if labels.size == 1:
        return labels.reshape((1,) * len(site.results[0]))
    if any(labels.shape[axis] > 1 for axis in axes):
        return site.stop(ONE_EACH)
    return labels if operation.keepdims else np.squeeze(labels, tuple(sorted(axes)))


def _reshape_operation(site: Site) -> Labels | list[Labels]:
    target = site.operation.newshape
    if len(target) != len(site.results[0]) + 1 or not isinstance(target[0], int):
        return site.stop()
    return _reshaped(site, "newshape", (target[0],))


def _transpose_operation(site: Site) -> Labels | list[Labels]:
    axes = site.operation.axes
    if axes is None or axes[0] % len(axes) != 0:
        return site.stop(MOVES_BATCH)
    return site.given[0].transpose([axis % len(axes) - 1 for axis in axes[1:]])


# fmt: off
PLAIN = (
    "Relu", "Relu6", "Sigmoid", "Softplus", "Softsign", "SoftShrink", "Silu", "Squareplus", "LogSigmoid",
    "LeakyRelu", "HardSigmoid", "HardSilu", "Elu", "Selu", "Gelu", "Celu", "TanhShrink", "HardTanh",
    "HardShrink", "Tanh", "Absolute", "Abs", "Negative", "Square", "Exp", "Clip", "Threshold", "SparsePlus",
    "SparseSigmoid", "Sin", "Cos", "Identity",
)
# fmt: on
BY_NAME: dict[str, Rule] = {
    "LayerScale": _layer_scale,
    "CustomScaleLayer": _scaled_sum,
    "StochasticDepth": _elementwise,
    "Concatenate": _concatenate,
    "Reshape": _reshape_operation,
    "Transpose": _transpose_operation,
    **dict.fromkeys(["Mean", "Max", "Min", "Sum"], _reduction),
    **dict.fromkeys(["Add", "Subtract", "Multiply", "Maximum", "Minimum"], _arithmetic),
    **dict.fromkeys(["Divide", "TrueDivide", "Power"], _division),
    **dict.fromkeys(PLAIN, _plain_operation),
}
