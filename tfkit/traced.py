"""What a compiled train step does, read from its graph.

Keras remembers nothing of what it traced; the graph holds it.
"""

import inspect
from typing import Any

import keras

WRITES = (
    "AssignVariableOp",
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    "ResourceApply",
    "ResourceScatter",
)
BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")  # their first input is what decides


def traced_graphs(model: keras.Model) -> list[Any]:
    """Returns the graphs of a model's train step; none before its first step, or where it runs eagerly."""
    function = model.train_function
    inside = inspect.getclosurevars(function).nonlocals.values() if inspect.isfunction(function) else ()
    return [
        concrete.graph
        for each in (function, *inside)
        if hasattr(each, "_list_all_concrete_functions")
        for concrete in each._list_all_concrete_functions()
    ]


def written_variables(model: keras.Model) -> set[int]:
    """Returns the ids of a model's variables that its traced train step assigns to."""
    handles = set()
    for graph in traced_graphs(model):
        given = {inside.name: outside for outside, inside in graph.captures}
        written = (graph.inputs[place].name for place in _written_inputs(graph, {}))
        handles |= {id(given[name]) for name in written if name in given}
    return {
        id(variable)
        for variable in model.variables
        if any(id(value.handle) in handles for value in local_values(variable))
    }


def local_values(variable: keras.Variable) -> list[Any]:
    """Returns a variable's tensor; of one that is mirrored, each replica's."""
    return list(getattr(variable.value, "values", [variable.value]))


def list_operations(graph: Any) -> list[Any]:
    """Returns the operations of a graph and of the functions that it calls, at any depth."""
    found: list[Any] = list(graph.get_operations())
    names: set[str] = set()
    for operation in found:  # grows as functions are met
        for name in set(_called(operation)) - names:
            names.add(name)
            found += operation.graph._get_function(name).graph.get_operations()
    return found


def draws_random_numbers(operation: Any) -> bool:
    """Tells whether an operation draws from a state of TensorFlow's own, not from a seed that it is given."""
    kind = operation.type
    unseeded = ("Random", "TruncatedNormal", "ParameterizedTruncatedNormal", "Multinomial")
    generators = ("StatefulUniform", "StatefulStandardNormal", "StatefulTruncatedNormal", "StatefulRandom")
    return kind.startswith((*unseeded, *generators))


def _written_inputs(graph: Any, known: dict[str, set[int]]) -> set[int]:
    """Returns the places among a graph's inputs that it, or a function that it calls, assigns to."""
    places = {tensor.name: place for place, tensor in enumerate(graph.inputs)}
    found: set[int] = set()
    for operation in graph.get_operations():
        if operation.type.startswith(WRITES):
            found.add(places.get(operation.inputs[0].name, -1))
        passed = operation.inputs[operation.type in BRANCHES :]
        for name in _called(operation):
            if name not in known:
                known[name] = set()
                known[name] = _written_inputs(graph._get_function(name).graph, known)
            found |= {places.get(passed[place].name, -1) for place in known[name] if place < len(passed)}
    return found - {-1}


def _called(operation: Any) -> list[str]:
    """Returns the names of the functions that an operation runs."""
    names = []
    for attribute in operation.op_def.attr:
        if attribute.type == "func":
            names.append(operation.get_attr(attribute.name).name)
        elif attribute.type == "list(func)":
            names += [each.name for each in operation.get_attr(attribute.name)]
    return names
