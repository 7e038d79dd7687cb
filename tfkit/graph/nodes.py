"""Which layers a model has, where they stand, and whether the model is fit for use."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras.src import backend

from tfkit.errors import ArgumentError, ArgumentTypeError, NonFiniteWeightsError, UnbuiltModelError


@dataclasses.dataclass(frozen=True)
class Node:
    """A layer at the place where the walk met it.

    Attributes:
        path: Names from below the root model down to the layer, joined by ``/``.
        layer: The layer.
        children: The nodes inside it, in order; empty for a layer without sublayers.
    """

    path: str
    layer: keras.Layer
    children: tuple["Node", ...] = ()

    @property
    def is_unit(self) -> bool:
        """Whether people see one layer here, although Keras built it from several.

        True for Keras's own composites, such as an LSTM with its cell or a
        MultiHeadAttention with its projections; false for models and for layers that
        a user composed.
        """
        return (
            bool(self.children)
            and _is_keras_class(self.layer)
            and not any(isinstance(node.layer, keras.Model) for node in descend([self]))
        )


def _is_keras_class(layer: keras.Layer) -> bool:
    return type(layer).__module__.split(".")[0] == "keras"


def walk(model: keras.Model) -> tuple[Node, ...]:
    """Returns the nodes directly below `model`, each with what it contains.

    Args:
        model: A Keras model of any kind: Sequential, functional or subclassed.

    Returns:
        The children of the root in model order. A layer that is used at several
        places has a node at each container that holds it. A root with weights of its own
        comes first, as a node without children.
    """
    root = (Node(model.name, model),) if own_variables(model) else ()
    return root + tuple(read_node(layer, layer.name) for layer in _sublayers(model))


def read_node(layer: keras.Layer, path: str) -> Node:
    """Returns a layer that stands at a path, with what it contains."""
    inside = _sublayers(layer)
    return Node(path, layer, tuple([read_node(child, f"{path}/{child.name}") for child in inside]))


def _sublayers(layer: keras.Layer) -> list[keras.Layer]:
    if not layer._layers and not isinstance(layer, keras.Model):  # most layers: quickly
        return []
    attached = layer._flatten_layers(include_self=False, recursive=False)
    if not isinstance(layer, keras.Model):
        return attached
    if isinstance(layer, keras.Sequential):  # what else hangs on it, it built from its layers
        return list(layer.layers)
    inside = {id(each) for each in layer.layers}  # in order; others hang outside the graph
    return [*layer.layers, *(each for each in attached if id(each) not in inside)]


def descend(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yields every node in `nodes` and below, parents before children."""
    for node in nodes:
        yield node
        yield from descend(node.children)


def input_structure(model: keras.Model) -> Any:
    """Returns a model's inputs in the structure in which it is called: one, a list, a dict.

    None for a model that computes in Python and declares none.
    """
    functional = getattr(model, "_functional", None) or model  # a Sequential wraps one
    return getattr(functional, "_inputs_struct", getattr(model, "inputs", None))


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the weights that belong to the layer itself, not to its sublayers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_state(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the weights and the random seeds of the layer itself, not of its sublayers."""
    return own_variables(layer) + [generator.state for generator in layer._seed_generators]


def learnable_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the layer's own weights that training may move.

    A kernel under a LoRA adapter is not among them, for the adapter learns in its place.
    """
    adapted = getattr(layer, "lora_enabled", False)
    return [
        variable
        for variable in layer._trainable_variables
        if not adapted or variable.name.startswith("lora") or variable.name == "bias"
    ]


def learnable(model: keras.Model) -> Iterator[tuple[Node, keras.Variable]]:
    """Yields each weight that training could move, once, with the node that owns it."""
    seen: set[int] = set()
    for node in descend(walk(require_model(model))):
        for variable in learnable_variables(node.layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                yield node, variable


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns `layer` and all layers inside it, at any depth, each once."""
    return layer._flatten_layers()


def running_update() -> Any:
    """Returns the update of weights that is being executed or traced here, None outside one.

    Keras opens a name scope with the optimizer as its caller around every `apply`, which
    is how a constraint can learn on whose behalf it is called. The scope is an object of
    its own for each `apply`; its `caller` is the optimizer.
    """
    from keras.src.backend.common import global_state

    for scope in reversed(global_state.get_global_attribute("name_scope_stack") or []):
        if isinstance(scope.caller, keras.optimizers.Optimizer):
            return scope
    return None


def require_model(model: object) -> keras.Model:
    """Returns `model` if it is a built Keras 3 model.

    Raises:
        ArgumentTypeError: If it is no Keras 3 model.
        UnbuiltModelError: If its weights do not exist yet.
    """
    if not isinstance(model, keras.Model):
        raise ArgumentTypeError(
            "`model` must be a Keras 3 model (keras.Model). "
            f"Received: model={model!r} of type {type(model).__module__}.{type(model).__name__}. "
            "Load a file with keras.models.load_model, and build tf_keras models with Keras 3."
        )
    if not model.built:
        raise UnbuiltModelError(
            "`model` must be built, so that its layers and weights exist. "
            f"Received: model={model.name!r}, which is unbuilt. "
            "Give it a keras.Input, call model.build(input_shape), or call it once on a batch."
        )
    return model


def require_compiled(model: object) -> keras.Model:
    """Returns `model` if it is a built and compiled Keras 3 model.

    Raises:
        ArgumentTypeError: If it is no Keras 3 model.
        UnbuiltModelError: If its weights do not exist yet.
        ArgumentError: If it has no optimizer.
    """
    built = require_model(model)
    if not built.compiled or built.optimizer is None:
        raise ArgumentError(
            "`model` must be compiled with an optimizer. "
            f"Received: model={built.name!r}, which is not. Call model.compile(optimizer, loss) first."
        )
    return built


def require_finite(model: keras.Model) -> None:
    """Checks that every floating-point weight is a finite number.

    Raises:
        NonFiniteWeightsError: Naming the first weights that are not.
    """
    broken: dict[int, str] = {}
    for node in descend(walk(model)):
        for variable in own_variables(node.layer):
            if id(variable) in broken or "float" not in variable.dtype:
                continue
            if not bool(keras.ops.all(keras.ops.isfinite(variable))):
                broken[id(variable)] = f"{node.path}/{variable.name}"
    if broken:
        raise NonFiniteWeightsError(
            "Every weight must be a finite number. "
            f"Received: model={model.name!r} with NaN or infinity in {', '.join(list(broken.values())[:5])}"
            f"{' and more' if len(broken) > 5 else ''}. "
            "Train again with a lower learning rate or gradient clipping, or load an earlier checkpoint."
        )


def read_mask(tensor: Any) -> Any:
    """Returns the mask that Keras carries along with a tensor, or None."""
    return backend.get_keras_mask(tensor)


def write_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a tensor, for the layers that read it."""
    backend.set_keras_mask(tensor, mask)


def draws_random_numbers(layer: keras.Layer) -> bool:
    """Tells whether the layer has a random state that it uses, as dropout and augmentation do."""
    rates = [getattr(layer, name, None) for name in ("rate", "dropout", "recurrent_dropout")]
    unused = any(rate is not None for rate in rates) and not any(
        rates
    )  # a cell without dropout has a seed too
    return bool(layer._seed_generators) and not (_is_keras_class(layer) and unused)
