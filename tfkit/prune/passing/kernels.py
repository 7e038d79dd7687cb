"""Layers with kernels: what makes channels and what reads them."""

import math

import numpy as np
from keras import layers

from tfkit.prune.coupling import Labels, placed
from tfkit.prune.passing.site import ONE_EACH, Site, elements, is_elementwise, places, rule, share


@rule(layers.Dense)
def _dense(site: Site) -> Labels:
    layer = site.operation
    taken, made = site.read(), site.coupling.fresh(layer.units)
    site.use(layer.kernel, 0, taken, "reads")
    site.use(layer.kernel, 1, made, "makes")
    site.use(layer.bias, 0, made, "accompanies")
    site.size("units", made)
    site.work(elements(site.shapes[0][:-1]), taken, made)
    return site.make(made)


@rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _convolution(site: Site) -> Labels:
    layer, c = site.operation, site.coupling
    taken, groups = site.read(), layer.groups
    size = places(site.results[0], site.axis) * math.prod(layer.kernel_size)
    if groups == len(taken) > 1:  # a depthwise convolution by another name
        made = np.repeat(taken, layer.filters // groups)
        site.use(layer.kernel, -1, made, "accompanies")
        site.use(layer.bias, 0, made, "accompanies")
        site.size("filters", made)
        site.size("groups", taken)
        site.work(size, made)
        return site.make(made)
    made = c.fresh(layer.filters)
    if groups > 1:  # each group keeps as many as the others
        taken = share(c, taken, groups)[0]
        share(c, made, groups)
    site.use(layer.kernel, -2, taken, "reads")
    site.use(layer.kernel, -1, made, "makes")
    site.use(layer.bias, 0, made, "accompanies")
    site.size("filters", made)
    site.work(size, taken, made)
    return site.make(made)


@rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed(site: Site) -> Labels:
    layer = site.operation
    taken, made = site.read(), site.coupling.fresh(layer.filters)
    site.use(layer.kernel, -1, taken, "reads")
    site.use(layer.kernel, -2, made, "makes")
    site.use(layer.bias, 0, made, "accompanies")
    site.size("filters", made)
    site.work(places(site.shapes[0], site.axis) * math.prod(layer.kernel_size), taken, made)
    return site.make(made)


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(site: Site) -> Labels:
    layer = site.operation
    line = site.coupling.along(site.given[0], site.axis, site.shapes[0][site.axis])
    made = np.repeat(line, layer.depth_multiplier)
    site.use(layer.kernel, -2, line, "accompanies")
    site.use(layer.bias, 0, made, "accompanies")
    site.work(places(site.results[0], site.axis) * math.prod(layer.kernel_size), made)
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
    size = places(site.results[0], site.axis)
    site.work(size * math.prod(layer.kernel_size), between)
    site.work(size, between, made)
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
    counts = {name: site.shapes[order[id(arguments[name])]][0] for name in ("query", "key", "value")}
    tokens = {name: math.nan if count is None else count for name, count in counts.items()}
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
