"""A model made anew, call by call, as XNNPACK's sparse kernels want it; `sparse` says what that is."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ExportError
from tfkit.export.affine import affine, scaled
from tfkit.export.windows import Span
from tfkit.graph import Call, Flow

layers = keras.layers

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
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
    layers.SpatialDropout2D,
    layers.UpSampling2D,
)
_MERGING = (layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply, layers.Subtract)
_OPERATIONS = (
    "Relu", "Relu6", "Sigmoid", "Silu", "HardSigmoid", "HardSilu", "Tanh", "Gelu", "Identity",
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide",
)  # fmt: skip
# those that take (batch, channels) as they take (batch, 1, 1, channels)
_FLAT = (
    layers.Activation, layers.Dense, layers.Dropout, layers.ELU, layers.Identity, layers.LeakyReLU,
    layers.ReLU, layers.Rescaling,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Picture:
    """A tensor of the new model.

    Attributes:
        tensor: The tensor.
        turned: Whether it is turned upside down and left to right, against the old model's.
        inner: Whether it comes after the stem, where the sparse kernels can take it.
        rank: How many dimensions the old tensor has; ``(batch, 1, 1, channels)`` and
            ``(batch, channels)`` may stand for each other.
    """

    tensor: Any
    turned: bool = False
    inner: bool = False
    rank: int = 4

    @property
    def reshaped(self) -> bool:
        """Whether it has other dimensions than the old one."""
        return len(self.tensor.shape) != self.rank


class Rewriter:
    """Makes each call of a model anew, in order.

    Attributes:
        flow: The old model's calls; all sizes are known.
        shapes: The old shape of each tensor, by its key.
        takers: The calls that take a tensor.
        uses: How often a tensor is taken or given out.
        pictures: The new tensors, by the key of the old.
        paddings: Keys of tensors that only a convolution takes: the key before the padding, and
            its sizes.
        folded: Calls that went into the convolution before them.
        twins: The new layers and operations that do what the old do, by the old.
        names: Names that are taken.
        own: Names for the first layers that stand for the old ones, by the old.
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
            if type(call.operation) is layers.ZeroPadding2D
            and _last_channels(call.operation)
            and self._goes_into_convolution(call.outputs[0])
        }
        self.folded: set[int] = set()
        self.twins: dict[int, keras.Operation] = {}
        self.names = {x.name for x in flow.model.inputs}
        self.own: dict[int, str] = {}
        for call in flow.calls:
            if id(call.operation) not in self.own:
                self.own[id(call.operation)] = self._free(call.path.replace("/", "_"))

    def run(self) -> keras.Model:
        inputs = [
            keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name) for x in self.flow.model.inputs
        ]
        turned = self._turns()
        for key, x in zip(self.flow.inputs, inputs, strict=True):
            turn = turned and len(x.shape) == 4 and _spreads(x.shape)
            self._give(key, self._turn(x, x.name) if turn else x, Picture(x, turn))
        for call in self.flow.calls:
            if id(call) not in self.folded and call.outputs[0] not in self.paddings:
                self._emit(call)
        outputs = self.flow.pack([self._plain(self.pictures[key]).tensor for key in self.flow.outputs])
        structure = graph.input_structure(self.flow.model)
        return keras.Model(keras.tree.pack_sequence_as(structure, inputs), outputs, name=self.flow.model.name)

    def _goes_into_convolution(self, key: int) -> bool:
        takers = self.takers[key]
        return (
            self.uses[key] == 1
            and _is_convolution(takers[0].operation)
            and takers[0].operation.padding == "valid"
        )

    # --- padding and turning ---------------------------------------------------------------------

    def _turns(self) -> bool:
        """Tells whether more convolutions are padded alike on all sides when the picture is turned."""
        strided = [
            call
            for call in self.flow.calls
            if _is_convolution(call.operation) and max(call.operation.strides) > 1
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
        if picture.reshaped:
            sizes = (1, 1, x.shape[-1]) if picture.rank == 4 else x.shape[-1:]
            x = layers.Reshape(sizes, name=self._free(f"{x.name}_reshaped"), dtype=x.dtype)(x)
        elif picture.turned:
            x = self._turn(x, x.name)
        return Picture(x, inner=picture.inner, rank=picture.rank)

    # --- calls -----------------------------------------------------------------------------------

    def _emit(self, call: Call) -> None:
        operation = call.operation
        given = [self.pictures[self.paddings[key][0] if key in self.paddings else key] for key in call.inputs]
        if _is_convolution(operation):
            return self._convolve(call, given[0])
        if len(given) == 1:
            (picture,) = given
            factors = affine(call) if picture.inner and len(picture.tensor.shape) == 4 else None
            if factors is not None:
                x = scaled(picture.tensor, *factors, name=self._name(call), dtype=picture.tensor.dtype)
                return self._give(call.outputs[0], x, picture)
            if type(operation) is layers.GlobalAveragePooling2D and _last_channels(operation):
                return self._pool(call, picture)
            if isinstance(operation, layers.Reshape | layers.Flatten) and self._stays(call, picture):
                return None
        inner = any(each.inner for each in given)
        if self._alike(call, given):
            like = Picture(None, any(each.turned for each in given), inner)
        else:
            given, like = [self._plain(each) for each in given], Picture(None, inner=inner)
        results = call.call(self._twin(call), [each.tensor for each in given])
        for key, x in zip(call.outputs, results, strict=True):
            self._give(key, x, like)
        self._fill(operation)
        return None

    def _give(self, key: int, tensor: Any, like: Picture) -> None:
        turned = like.turned and _spreads(tensor.shape)
        self.pictures[key] = Picture(tensor, turned, like.inner, len(self.shapes[key]))

    def _alike(self, call: Call, given: Sequence[Picture]) -> bool:
        """Tells whether the operation can run on these tensors as they are."""
        kind, name = type(call.operation), type(call.operation).__name__
        if any(each.reshaped for each in given):
            return len(given) == 1 and kind in _FLAT
        if not any(each.turned for each in given):
            return True
        if isinstance(call.operation, keras.Layer):
            axes = keras.tree.flatten(getattr(call.operation, "axis", None))
            channels = all(axis in (None, -1, 3) for axis in axes) and _last_channels(call.operation)
            if kind not in _POINTWISE + _MERGING or not channels:
                return False
            settings = [getattr(call.operation, "scale", 1), getattr(call.operation, "offset", 0)]
        else:
            settings = [x for x in call.arguments.args if not isinstance(x, keras.KerasTensor)]
            if name not in _OPERATIONS:
                return False
        if any(len(x.tensor.shape) != 4 for x in given) or any(np.ndim(each) > 1 for each in settings):
            return False
        return len({each.turned for each in given if _spreads(each.tensor.shape)}) == 1

    def _convolve(self, call: Call, picture: Picture) -> None:
        layer, kind = call.operation, type(call.operation)
        separable, depthwise = kind is layers.SeparableConv2D, kind is layers.DepthwiseConv2D
        kernel = keras.ops.convert_to_numpy(layer.pointwise_kernel if separable else layer.kernel)
        kernel, bias, key = self._fold(call, kernel, depthwise)
        settings = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
        last = {"activation": layer.activation, "use_bias": bias is not None, "name": self._name(call)}
        alone = call.inputs[0] not in self.paddings and not _spreads(call.results[0].shape)
        alone = alone and kind is layers.Conv2D and layer.kernel_size == (1, 1) and layer.groups == 1
        if picture.reshaped and alone:
            made = layers.Dense(layer.filters, **settings, **last)
            tensor = made(picture.tensor)
            made.set_weights([kernel[0, 0]] if bias is None else [kernel[0, 0], bias])
            return self._give(key, tensor, picture)
        picture = self._plain(picture) if picture.reshaped else picture
        span = self._span(call, picture.turned)
        places = {"strides": layer.strides, "dilation_rate": layer.dilation_rate}
        places["padding"], x = span.padded(picture.tensor, lambda: self._free(f"{last['name']}_padding"))
        if separable:
            places |= {"depth_multiplier": layer.depth_multiplier, "use_bias": False}
            first = layers.DepthwiseConv2D(
                layer.kernel_size, **settings, **places, name=self._free(f"{last['name']}_depthwise")
            )
            x = first(x)
            turn = -1 if picture.turned else 1
            first.set_weights([keras.ops.convert_to_numpy(layer.depthwise_kernel)[::turn, ::turn]])
            made = layers.Conv2D(layer.filters, 1, **settings, **last)
        elif depthwise:
            made = layers.DepthwiseConv2D(
                layer.kernel_size, depth_multiplier=layer.depth_multiplier, **settings, **places, **last
            )
        else:
            made = layers.Conv2D(
                layer.filters, layer.kernel_size, groups=layer.groups, **settings, **places, **last
            )
        tensor = made(x)
        kernel = kernel[::-1, ::-1] if picture.turned else kernel
        made.set_weights([kernel] if bias is None else [kernel, bias])
        stem = kind is layers.Conv2D and span.even and span.is_stem and kernel.shape[2] == 3
        self._give(key, tensor, dataclasses.replace(picture, inner=picture.inner or stem))
        return None

    def _fold(self, call: Call, kernel: np.ndarray, depthwise: bool) -> tuple[np.ndarray, Any, int]:
        """Takes in the factors and summands behind a convolution.

        Returns:
            Its kernel, its bias or None, and the key of the tensor that it now gives.
        """
        layer, key, channels = call.operation, call.outputs[0], call.results[0].shape[-1:]
        bias = keras.ops.convert_to_numpy(layer.bias) if layer.use_bias else np.zeros(channels, kernel.dtype)
        while layer.activation is keras.activations.linear and self.uses[key] == 1 and self.takers[key]:
            (taker,) = self.takers[key]
            factors = affine(taker)
            if factors is None:
                break
            scale, shift = (np.broadcast_to(each, channels) for each in factors)
            bias = bias * scale + shift
            kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
            self.folded.add(id(taker))
            key = taker.outputs[0]
        return kernel, bias if layer.use_bias or np.any(bias) else None, key

    def _pool(self, call: Call, picture: Picture) -> None:
        """Averages over the picture, for a gate inside the network or for its head."""
        keeps = picture.inner and self._gates(call.outputs[0])
        pool = layers.GlobalAveragePooling2D(
            keepdims=keeps, name=self._name(call), dtype=call.operation.dtype_policy
        )
        self._give(call.outputs[0], pool(picture.tensor), picture)

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
        before, after = self.shapes[call.inputs[0]], call.results[0].shape
        if before[-1] != after[-1] or any(len(x) not in (2, 4) or _spreads(x) for x in (before, after)):
            return False
        if len(picture.tensor.shape) == 4 and len(after) == 2:
            return False
        self._give(call.outputs[0], picture.tensor, picture)
        return True

    # --- layers of the new model -----------------------------------------------------------------

    def _name(self, call: Call) -> str:
        """Returns a name for a call's new layer; the first call of a layer keeps its own."""
        name = self.own.pop(id(call.operation), None)
        return self._free(call.path.replace("/", "_")) if name is None else name

    def _free(self, name: str) -> str:
        """Returns a name that no layer has yet."""
        number, free = 1, name
        while free in self.names:
            number += 1
            free = f"{name}_{number}"
        self.names.add(free)
        return free

    def _turn(self, x: Any, name: str) -> Any:
        return graph.rename(keras.ops.flip(x, axis=(1, 2)), self._free(f"{name}_turned"))

    def _twin(self, call: Call) -> keras.Operation:
        operation = call.operation
        if id(operation) not in self.twins:
            try:
                self.twins[id(operation)] = graph.copy_operation(operation, {"name": self._name(call)})
            except (NotImplementedError, TypeError, ValueError) as error:
                raise ExportError(
                    "A layer must be one that can be made anew from its configuration. "
                    f"Received: {call.path!r}, a {type(operation).__name__} ({error}). "
                    "Give it get_config(), and let __init__ take **kwargs."
                ) from error
        return self.twins[id(operation)]

    def _fill(self, operation: keras.Operation) -> None:
        """Gives the twin of a layer its weights."""
        if isinstance(operation, keras.Layer):
            twin = self.twins[id(operation)]
            twin.set_weights(operation.get_weights())
            if isinstance(twin, layers.Normalization):
                twin.finalize_state()  # it computes with a copy of its weights


def _is_convolution(operation: keras.Operation) -> bool:
    """Tells whether it is a convolution that is made anew; a subclass may compute anything."""
    return type(operation) in _CONVOLUTIONS and _last_channels(operation)


def _spreads(shape: tuple[int | None, ...]) -> bool:
    """Tells whether a tensor has more than one place."""
    return len(shape) != 2 and any(size != 1 for size in shape[1:-1])


def _last_channels(layer: keras.Layer) -> bool:
    return getattr(layer, "data_format", "channels_last") == "channels_last"
