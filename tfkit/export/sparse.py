"""An exact rewrite of a model, after which XNNPACK's sparse kernels take it."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ExportError
from tfkit.export.signature import input_specs, random_samples
from tfkit.export.windows import Span
from tfkit.graph import Call, Flow

layers = keras.layers

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)
# layers that treat all places of a picture alike, so that turning the picture makes no difference
_POINTWISE = (
    layers.Activation,
    layers.BatchNormalization,
    layers.Concatenate,
    layers.Dense,
    layers.Dropout,
    layers.ELU,
    layers.Identity,
    layers.LeakyReLU,
    layers.LayerNormalization,
    layers.Normalization,
    layers.ReLU,
    layers.Rescaling,
    layers.Softmax,
)
_MERGING = (layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply, layers.Subtract)
_OPERATIONS = (
    "Relu", "Relu6", "Sigmoid", "Silu", "HardSigmoid", "HardSilu", "Tanh", "Gelu", "Identity",
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide",
)  # fmt: skip
# those that take (batch, channels) as well
_FLAT = (
    layers.Activation, layers.Dropout, layers.ELU, layers.Identity, layers.LeakyReLU, layers.ReLU,
    layers.Rescaling,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Picture:
    """A tensor of the new model.

    Attributes:
        tensor: The tensor.
        turned: Whether it is turned upside down and left to right, against the old model's.
        inner: Whether it comes after the stem, where the sparse kernels can take it.
        flat: Whether it is ``(batch, channels)`` for the old ``(batch, 1, 1, channels)``.
    """

    tensor: Any
    turned: bool = False
    inner: bool = False
    flat: bool = False


def make_sparse_ready(model: keras.Model, *, input_shape: Sequence[int] | None = None) -> keras.Model:
    """Returns a model that computes the same and that XNNPACK's sparse kernels can take.

    Those kernels, which run on phones and in browsers, want a network between a 3x3 stem with
    strides of 2 and a mean over the picture, of 1x1 convolutions, 3x3 and 5x5 depthwise
    convolutions padded alike on all sides, sums, products and activations. Rewritten are:

    - strided convolutions, which TensorFlow pads below and right only: the picture and all kernels
      are turned by 180 degrees, and the padding on all sides then computes the same;
    - BatchNormalization and other factors and summands for each channel: they go into the
      convolution before them, or become a depthwise one with a single weight;
    - 1x1 convolutions of a pooled picture, as in MobileNet's head: they become Dense.

    Zeros stay zeros. Prune before or after; `explain_deployment` tells what still stops a model.

    Args:
        model: A functional or Sequential model, stripped of pruning.
        input_shape: ``(height, width, channels)`` for a model that leaves sizes open: how
            TensorFlow pads depends on them, so they are fixed in the new one.

    Returns:
        A new, uncompiled functional model, models inside it dissolved. The old one is not touched.

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If it has no weights.
        NonFiniteWeightsError: If a weight is NaN or infinite.
        ExportError: If it is a subclassed model, leaves sizes open, or the new model
            would not compute the same.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None)
        >>> ready = tfkit.make_sparse_ready(model)
        >>> ready.count_params() < model.count_params()  # no BatchNormalization any more
        True

    Source: Elsen et al., Fast Sparse ConvNets (2020), section 3; XNNPACK, subgraph.c.
    """
    graph.require_finite(graph.require_model(model))
    flow = graph.read_flow(model)
    if flow is None:
        raise ExportError(
            "A model must be functional or Sequential to be rewritten. "
            f"Received: model={model.name!r}, a subclassed model. "
            "Build it from layers: keras.Model(inputs, outputs)."
        )
    specs = input_specs(model, batch_size=None, input_shape=input_shape)
    if any(size is None for spec in specs for size in spec.shape[1:]):
        raise ExportError(
            "How TensorFlow pads depends on the picture's size, so it must be known. "
            f"Received: model={model.name!r} with inputs {[tuple(spec.shape) for spec in specs]}. "
            "Pass input_shape=(height, width, channels)."
        )
    if input_shape is not None:
        flow = graph.read_flow(_sized(model, [tuple(spec.shape) for spec in specs]))
    new = _Rewriter(flow).run()
    _require_same(model, new, specs)
    return new


def _sized(model: keras.Model, shapes: Sequence[tuple[int | None, ...]]) -> keras.Model:
    """Returns the model with its sizes fixed."""
    made: list[tuple[keras.Operation, keras.Operation]] = []

    def copied(operation: keras.Operation) -> keras.Operation:
        made.append((operation, graph.copy_operation(operation, {})))
        return made[-1][1]

    new = graph.rebuild(model, copied, shapes)
    for old, twin in made:
        if isinstance(old, keras.Layer):
            twin.set_weights(old.get_weights())
            if isinstance(twin, layers.Normalization):
                twin.finalize_state()
    return new


def _require_same(old: keras.Model, new: keras.Model, specs: Sequence[tf.TensorSpec]) -> None:
    """Checks on random pictures that the new model computes what the old one does."""
    x = random_samples(specs, 2)
    packed = keras.tree.pack_sequence_as(graph.input_structure(old), x)
    pairs = zip(keras.tree.flatten(old(packed)), keras.tree.flatten(new(packed)), strict=True)
    for one, other in pairs:
        wanted, got = (keras.ops.convert_to_numpy(each).astype("float64") for each in (one, other))
        error = np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30)
        if not error <= 1e-4:
            raise ExportError(
                "The rewritten model must compute what the old one does. "
                f"Received: model={old.name!r}, where the largest difference is {error:.1e} of the largest "
                "output. If its own answers change as much with rounding, the network magnifies it; "
                "else report this model."
            )


class _Rewriter:
    """Makes each call of a model anew, in order.

    Attributes:
        flow: The old model's calls; all sizes are known.
        shapes: The old shape of each tensor, by its key.
        takers: The calls that take a tensor.
        uses: How often a tensor is taken or given out.
        pictures: The new tensors, by the key of the old.
        paddings: Keys of tensors that only a convolution takes: the key before the padding, and
            its sizes.
    """

    def __init__(self, flow: Flow):
        self.flow = flow
        self.shapes = {key: x.shape for key, x in zip(flow.inputs, flow.model.inputs, strict=True)}
        self.takers: dict[int, list[Call]] = defaultdict(list)
        for call in flow.calls:
            self.shapes.update((key, x.shape) for key, x in zip(call.outputs, call.results, strict=True))
            for key in call.inputs:
                self.takers[key].append(call)
        self.uses = Counter(key for call in flow.calls for key in call.inputs) + Counter(flow.outputs)
        self.pictures: dict[int, Picture] = {}
        self.paddings = {
            call.outputs[0]: (call.inputs[0], call.operation.padding)
            for call in flow.calls
            if isinstance(call.operation, layers.ZeroPadding2D)
            and self._goes_into_convolution(call.outputs[0])
        }
        self.twins: dict[int, keras.Operation] = {}
        self.names: Counter[str] = Counter()

    def run(self) -> keras.Model:
        inputs = [
            keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name) for x in self.flow.model.inputs
        ]
        turned = self._turns()
        for key, x in zip(self.flow.inputs, inputs, strict=True):
            turn = turned and len(x.shape) == 4
            self.pictures[key] = Picture(_turn(x) if turn else x, turned=turn)
        for call in self.flow.calls:
            if call.outputs[0] not in self.pictures and call.outputs[0] not in self.paddings:
                self._emit(call)
        outputs = self.flow.pack([self._plain(self.pictures[key]).tensor for key in self.flow.outputs])
        structure = graph.input_structure(self.flow.model)
        return keras.Model(keras.tree.pack_sequence_as(structure, inputs), outputs, name=self.flow.model.name)

    def _goes_into_convolution(self, key: int) -> bool:
        takers = self.takers[key]
        return (
            self.uses[key] == 1
            and isinstance(takers[0].operation, _CONVOLUTIONS)
            and takers[0].operation.padding == "valid"
        )

    # --- padding and turning ---------------------------------------------------------------------

    def _turns(self) -> bool:
        """Tells whether more convolutions are padded alike on all sides when the picture is turned."""
        strided = [
            call
            for call in self.flow.calls
            if isinstance(call.operation, _CONVOLUTIONS) and max(call.operation.strides) > 1
        ]
        even = {turn: sum(self._span(call, turn).even for call in strided) for turn in (False, True)}
        return even[True] > even[False]

    def _span(self, call: Call, turned: bool) -> Span:
        """Returns where a convolution's windows lie."""
        layer, key = call.operation, call.inputs[0]
        before = [0, 0]
        if key in self.paddings:
            key, amounts = self.paddings[key]
            before = [amount[0] for amount in amounts]
        size = self.shapes[key][1:3]
        kernel = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
        out = call.results[0].shape[1:3]
        covered = [(n - 1) * s + k for n, s, k in zip(out, layer.strides, kernel, strict=True)]
        if layer.padding == "same":
            before = [max(c - n, 0) // 2 for c, n in zip(covered, size, strict=True)]
        after = [c - n - b for c, n, b in zip(covered, size, before, strict=True)]
        if turned:
            before, after = after, before
        return Span(tuple(size), tuple(kernel), tuple(layer.strides), tuple(out), tuple(before), tuple(after))

    def _plain(self, picture: Picture) -> Picture:
        """Returns a tensor as the old model has it: upright and in all its dimensions."""
        x = picture.tensor
        if picture.flat:
            x = layers.Reshape((1, 1, x.shape[-1]))(x)
        elif picture.turned and _spreads(x.shape):
            x = _turn(x)
        return Picture(x, inner=picture.inner)

    # --- calls -----------------------------------------------------------------------------------

    def _emit(self, call: Call) -> None:
        operation = call.operation
        given = [self.pictures[self.paddings[key][0] if key in self.paddings else key] for key in call.inputs]
        if isinstance(operation, _CONVOLUTIONS) and _last_channels(operation):
            return self._convolve(call, given[0])
        if len(given) == 1:
            (picture,) = given
            affine = _affine(call) if picture.inner and not picture.flat else None
            if affine is not None and len(picture.tensor.shape) == 4:
                scale, shift = affine
                return self._give(call, _scaled(picture.tensor, scale, shift, self._name(call)), picture)
            if isinstance(operation, layers.GlobalAveragePooling2D) and _last_channels(operation):
                return self._pool(call, picture)
            if isinstance(operation, layers.Reshape | layers.Flatten) and self._stays(call, picture):
                return None
        if self._alike(call, given):
            turned = next((each.turned for each in given if _spreads(each.tensor.shape)), given[0].turned)
            like = Picture(None, turned, any(each.inner for each in given), given[0].flat)
        else:
            given = [self._plain(each) for each in given]
            like = Picture(None, inner=any(each.inner for each in given))
        results = call.call(self._twin(call), [each.tensor for each in given])
        for key, x in zip(call.outputs, results, strict=True):
            self.pictures[key] = dataclasses.replace(like, tensor=x)
        self._fill(operation)
        return None

    def _give(self, call: Call, tensor: Any, like: Picture, key: int | None = None) -> None:
        self.pictures[call.outputs[0] if key is None else key] = dataclasses.replace(like, tensor=tensor)

    def _alike(self, call: Call, given: Sequence[Picture]) -> bool:
        """Tells whether the operation can run on these tensors as they are."""
        kind, name = type(call.operation), type(call.operation).__name__
        is_layer = isinstance(call.operation, keras.Layer)
        if any(each.flat for each in given):
            return len(given) == 1 and kind in _FLAT
        if not any(each.turned and _spreads(each.tensor.shape) for each in given):
            return True
        if not (kind in _POINTWISE + _MERGING if is_layer else name in _OPERATIONS):
            return False
        if kind is layers.Softmax and call.operation.axis not in (-1, 3):
            return False
        if any(len(x.tensor.shape) != 4 for x in given):
            return False
        return len({each.turned for each in given if _spreads(each.tensor.shape)}) == 1

    def _convolve(self, call: Call, picture: Picture) -> None:
        layer = call.operation
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        bias = keras.ops.convert_to_numpy(layer.bias) if layer.use_bias else np.zeros(1, kernel.dtype)
        key, depthwise = call.outputs[0], isinstance(layer, layers.DepthwiseConv2D)
        if layer.activation is keras.activations.linear:
            while self.uses[key] == 1 and self.takers[key]:
                affine = _affine(self.takers[key][0])
                if affine is None:
                    break
                scale, shift = affine
                bias = bias * scale + shift
                scale = np.broadcast_to(scale, call.results[0].shape[-1:])
                kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
                key = self.takers[key][0].outputs[0]
        bias = np.broadcast_to(bias, call.results[0].shape[-1:]) if layer.use_bias or np.any(bias) else None
        settings = {
            "activation": layer.activation,
            "use_bias": bias is not None,
            "dtype": layer.dtype_policy,
            "trainable": layer.trainable,
            "name": self._name(call),
        }
        if picture.flat and not depthwise and kernel.shape[:2] == (1, 1) and layer.groups == 1:
            made = layers.Dense(layer.filters, **settings)
            tensor, like = made(picture.tensor), picture
            kernel = kernel[0, 0]
        else:
            picture = self._plain(picture) if picture.flat else picture
            span = self._span(call, picture.turned)
            settings |= {"strides": layer.strides, "dilation_rate": layer.dilation_rate}
            settings["padding"], x = span.padded(picture.tensor)
            if depthwise:
                made = layers.DepthwiseConv2D(
                    layer.kernel_size, depth_multiplier=layer.depth_multiplier, **settings
                )
            else:
                made = layers.Conv2D(layer.filters, layer.kernel_size, groups=layer.groups, **settings)
            tensor = made(x)
            stem = not depthwise and span.even and span.is_stem and kernel.shape[2] == 3
            like = dataclasses.replace(picture, inner=picture.inner or stem)
            kernel = kernel[::-1, ::-1] if picture.turned else kernel
        made.set_weights([kernel] if bias is None else [kernel, bias])
        self._give(call, tensor, like, key)

    def _pool(self, call: Call, picture: Picture) -> None:
        """Averages over the picture, for a gate inside the network or for its head."""
        keeps = len(call.results[0].shape) == 4
        if picture.inner and self._gates(call.outputs[0]):
            x = layers.GlobalAveragePooling2D(keepdims=True, name=self._name(call))(picture.tensor)
            self._give(call, x, picture)
        else:
            x = layers.GlobalAveragePooling2D(name=self._name(call))(picture.tensor)
            self._give(call, x, dataclasses.replace(picture, turned=False, flat=keeps))

    def _gates(self, key: int) -> bool:
        """Tells whether a pooled picture comes back to one that is not."""
        for call in self.takers[key]:
            if any(_spreads(self.shapes[other]) for other in call.inputs):
                return True
            if any(self._gates(other) for other in call.outputs):
                return True
        return False

    def _stays(self, call: Call, picture: Picture) -> bool:
        """Takes a reshape between ``(1, 1, channels)`` and ``(channels,)`` as what it is: nothing."""
        before, after = call.operation.input.shape, call.results[0].shape
        if (
            before[-1] != after[-1]
            or _spreads(before)
            or _spreads(after)
            or {2, 4} < {len(before), len(after)}
        ):
            return False
        if len(picture.tensor.shape) == 2 and len(before) in (2, 4):
            self._give(call, picture.tensor, dataclasses.replace(picture, flat=len(after) == 4))
            return True
        if len(picture.tensor.shape) == 4 and len(after) == 4:
            self._give(call, picture.tensor, picture)
            return True
        return False

    def _name(self, call: Call) -> str:
        name = call.path.replace("/", "_")
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}_{self.names[name]}"

    def _twin(self, call: Call) -> keras.Operation:
        operation = call.operation
        if id(operation) not in self.twins:
            changes = {"name": self._name(call)} if isinstance(operation, keras.Layer) else {}
            self.twins[id(operation)] = graph.copy_operation(operation, changes)
        return self.twins[id(operation)]

    def _fill(self, operation: keras.Operation) -> None:
        """Gives the twin of a layer its weights."""
        if isinstance(operation, keras.Layer):
            twin = self.twins[id(operation)]
            twin.set_weights(operation.get_weights())
            if isinstance(twin, layers.Normalization):
                twin.finalize_state()  # it computes with a copy of its weights


def _spreads(shape: tuple[int | None, ...]) -> bool:
    """Tells whether a tensor has more than one place."""
    return len(shape) != 2 and any(size != 1 for size in shape[1:-1])


def _turn(x: Any) -> Any:
    return keras.ops.flip(x, axis=(1, 2))


def _last_channels(layer: keras.Layer) -> bool:
    return layer.data_format == "channels_last"


def _affine(call: Call) -> tuple[Any, Any] | None:
    """Returns factor and summand for each channel, if that is all that a call does."""
    operation = call.operation
    if isinstance(operation, layers.BatchNormalization) and operation.axis in (
        -1,
        len(call.results[0].shape) - 1,
    ):
        mean, variance = (
            keras.ops.convert_to_numpy(x) for x in (operation.moving_mean, operation.moving_variance)
        )
        scale = 1 / np.sqrt(variance + operation.epsilon)
        scale = scale * keras.ops.convert_to_numpy(operation.gamma) if operation.scale else scale
        beta = keras.ops.convert_to_numpy(operation.beta) if operation.center else 0.0
        return scale, beta - mean * scale
    if isinstance(operation, layers.Rescaling):
        return np.asarray(operation.scale, "float32"), np.asarray(operation.offset, "float32")
    name, args = type(operation).__name__, call.arguments.args
    if isinstance(operation, keras.Layer) or name not in (
        "Add",
        "Subtract",
        "Multiply",
        "Divide",
        "TrueDivide",
    ):
        return None
    numbers = [each for each in args if isinstance(each, int | float) and not isinstance(each, bool)]
    if len(args) != 2 or len(numbers) != 1:
        return None
    (number,), behind = numbers, args[1] is numbers[0]
    if name == "Add":
        return 1.0, number
    if name == "Multiply":
        return number, 0.0
    if name == "Subtract":
        return (1.0, -number) if behind else (-1.0, number)
    return (1 / number, 0.0) if behind else None


def _scaled(x: Any, scale: Any, shift: Any, name: str) -> Any:
    """Multiplies and adds for each channel, by a depthwise convolution whose middle alone counts."""
    layer = layers.DepthwiseConv2D(3, padding="same", name=name)
    y = layer(x)
    kernel = np.zeros(layer.kernel.shape, "float32")
    kernel[1, 1, :, 0] = scale
    layer.set_weights([kernel, np.broadcast_to(np.asarray(shift, "float32"), kernel.shape[2:3])])
    return y
