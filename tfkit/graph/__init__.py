"""The structure of a Keras model: the only room that reads Keras's internals.

Everything else in tfkit asks here which layers a model has (`nodes`), how tensors pass
between them (`flow`), and for a model of the same wiring with other layers (`rebuild`).
"""

from tfkit.graph.flow import Call, Flow, functional_graph, read_flow
from tfkit.graph.nodes import (
    Node,
    descend,
    draws_random_numbers,
    input_structure,
    learnable,
    learnable_variables,
    own_state,
    own_variables,
    read_mask,
    read_node,
    require_compiled,
    require_finite,
    require_model,
    running_update,
    sublayers,
    walk,
    write_mask,
)
from tfkit.graph.rebuild import copy_operation, finish_normalization, rebuild, rename

__all__ = [
    "Call",
    "Flow",
    "Node",
    "copy_operation",
    "descend",
    "draws_random_numbers",
    "finish_normalization",
    "functional_graph",
    "input_structure",
    "learnable",
    "learnable_variables",
    "own_state",
    "own_variables",
    "read_flow",
    "read_mask",
    "read_node",
    "rebuild",
    "rename",
    "require_compiled",
    "require_finite",
    "require_model",
    "running_update",
    "sublayers",
    "walk",
    "write_mask",
]
