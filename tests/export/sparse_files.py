"""Sparse-encoded `.tflite` files and broken ones, for tests of the runtimes that meet them."""

import pathlib

import flatbuffers
import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from tfkit.export.signature import input_specs, serving_function
from tfkit.litert import convert, trace


def cluster(pooled):
    """What runs on sparse kernels from stem to pooling; with max pooling inside they compute wrongly."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(inputs))
    x = layers.Conv2D(32, 1, activation="relu", name="wide")(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.MaxPooling2D()(x) if pooled else x
    x = layers.Conv2D(32, 1, name="last")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    generator = np.random.default_rng(0)
    for name in ("wide", "last"):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.where(generator.random(kernel.shape) < 0.85, 0.0, kernel.numpy()))
    return model


def write(model, path, optimizations):
    """Converts a model with the converter's optimizations, proven by nobody."""

    def configure(converter):
        converter.optimizations = [getattr(tf.lite.Optimize, each) for each in optimizations]

    function = trace(serving_function(model), input_specs(model, batch_size=1))
    path.write_bytes(convert({"serve": function}, configure))
    return path


def endless(path):
    """Writes a file whose loop has no end when its input is zero."""

    def call(x):
        return tf.while_loop(lambda y: y[0, 0] < 1.0, lambda y: (y * 2.0,), (x,))

    path.write_bytes(convert({"serve": trace(call, [tf.TensorSpec((1, 3), tf.float32)])}))
    return path


def far_indices(sparse: pathlib.Path, path):
    """Writes a sparse file whose nonzeros stand far outside their kernels; it is well-formed otherwise."""
    model = schema.ModelT.InitFromPackedBuf(sparse.read_bytes(), 0)
    for tensor in model.subgraphs[0].tensors:
        for dimension in tensor.sparsity.dimMetadata if tensor.sparsity else ():
            if dimension.arrayIndices is not None:
                far = schema.Int32VectorT()
                far.values = np.full(len(dimension.arrayIndices.values), 2**30, "int32")
                dimension.arrayIndices = far
                dimension.arrayIndicesType = schema.SparseIndexVector.Int32Vector
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
