"""A `.tflite` file as operations: what stands in it, checked with LiteRT's own view and with NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests.export import sparse_files
from tfkit.export.operations import read_program, read_programs
from tfkit.litert import convert, trace


def content(model, folder, *optimizations):
    return sparse_files.write(model, folder / "m.tflite", optimizations).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def cluster():
    return sparse_files.cluster(pooled=True)


@pytest.fixture(scope="module")
def dense(cluster, folder):
    return content(cluster, folder)


@pytest.fixture(scope="module")
def sparse(cluster, folder):
    return content(cluster, folder, "EXPERIMENTAL_SPARSITY")


KINDS = ["PAD", "CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "CONV_2D", "MEAN"]


def test_operations_come_in_their_order_with_their_kinds(dense):
    program = read_program(dense)
    assert [each.kind for each in program.operations] == KINDS
    assert [each.number for each in program.operations] == list(range(len(KINDS)))


def test_shapes_and_types_are_those_of_the_network(dense):
    program = read_program(dense)
    assert program.operations[0].inputs[0].shape == (1, 32, 32, 3)
    assert [each.outputs[0].shape for each in program.operations[3:]] == [
        (1, 16, 16, 32),
        (1, 8, 8, 32),
        (1, 8, 8, 32),
        (1, 32),
    ]
    assert {x.dtype for x in program.operations[1].inputs} == {"FLOAT32"}
    assert program.outputs == {program.operations[-1].outputs[0].number}


def test_values_are_the_kernels(dense, cluster):
    program = read_program(dense)
    kernel = program.operations[5].inputs[1]
    assert kernel.constant
    wanted = np.asarray(cluster.get_layer("last").kernel)  # (1, 1, in, out); the file has the output first
    np.testing.assert_array_equal(kernel.values, np.transpose(wanted, (3, 0, 1, 2)))


def test_what_depends_on_the_input_is_no_constant(dense):
    program = read_program(dense)
    assert not any(each.inputs[0].constant or each.outputs[0].constant for each in program.operations)


def test_unpacking_is_left_out(dense, sparse):
    program = read_program(sparse)
    assert [each.kind for each in program.operations] == KINDS
    assert (program.sparse, read_program(dense).sparse) == (True, False)
    kernel = program.operations[5].inputs[1]
    assert (kernel.constant, kernel.values, kernel.sparse) == (True, None, False)
    assert sum(each.sparse for each in program.tensors) == 2


def test_float16_weights_are_unpacked(cluster, folder):
    file = tfkit.export_tflite(cluster, folder / "half.tflite", precision="float16").path.read_bytes()
    program = read_program(file)
    assert [each.kind for each in program.operations] == KINDS
    kernel = program.operations[5].inputs[1]
    assert (kernel.dtype, kernel.values.dtype) == ("FLOAT32", np.float16)
    wanted = np.asarray(cluster.get_layer("last").kernel, "float16")
    np.testing.assert_array_equal(kernel.values, np.transpose(wanted, (3, 0, 1, 2)))


def test_activations_are_what_depends_on_the_inputs(dense):
    program = read_program(dense)
    start = program.operations[0].inputs[0].number
    wanted = [start, *(each.outputs[0].number for each in program.operations)]
    assert list(program.activations([start])) == wanted
    assert not set(program.frozen([start])) & set(wanted)
    stored = {x.number for each in program.operations for x in each.inputs[1:]}
    assert set(program.frozen([start])) == stored


def test_int8_is_seen_in_every_graph(tmp_path):
    """A loop's condition and body are graphs of their own."""

    def halve(y):
        return (tf.cast(tf.cast(y, tf.int8), tf.float32) / 2,)

    def call(x):
        return tf.while_loop(lambda y: tf.reduce_sum(y) > 9.0, halve, (x,))

    several = convert({"serve": trace(call, [tf.TensorSpec((3,), tf.float32)])})
    programs = read_programs(several)
    assert len(programs) == 3
    assert not programs[0].holds_int8
    assert any(each.holds_int8 for each in programs)


def test_int8_computes_in_int8_and_weights_alone_do_not(cluster, folder):
    x = np.random.default_rng(0).random((4, 32, 32, 3))
    kinds = {}
    for precision in ("int8", "int8_weights"):
        artifact = tfkit.export_tflite(
            cluster, folder / f"{precision}.tflite", precision=precision, representative_data=x
        )
        kinds[precision] = read_program(artifact.path.read_bytes()).computes_in_int8
        assert read_program(artifact.path.read_bytes()).holds_int8
    assert {"QUANTIZE", "CONV_2D", "MEAN"} <= set(kinds["int8"])
    assert "DEQUANTIZE" not in kinds["int8"]
    assert kinds["int8_weights"] == []


def test_several_graphs_are_refused_where_one_is_meant(tmp_path):
    endless = sparse_files.endless(tmp_path / "loop.tflite").read_bytes()
    with pytest.raises(tfkit.ExportError, match=r"must have one graph.*Received: one with 3.*unroll=True"):
        read_program(endless)


TORN = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "cut at its head": lambda whole: whole[:20],
    "empty": lambda whole: b"",
    "another file": lambda whole: b"some text, and no table in it anywhere",
    "zeros": lambda whole: bytes(1000),
    "garbled": lambda whole: np.random.default_rng(0).bytes(len(whole)),
}


@pytest.mark.parametrize("case", TORN)
def test_a_torn_file_is_refused(dense, case):
    with pytest.raises(tfkit.ExportError, match=r"whole \.tflite file.*Received: \d+ bytes.*Export it again"):
        read_program(TORN[case](dense))


@pytest.mark.parametrize("part", range(1, 12))
def test_a_file_cut_anywhere_is_refused_or_read(dense, part):
    """A cut in the weights' last bytes cannot always be seen."""
    try:
        program = read_program(dense[: len(dense) * part // 12])
    except tfkit.ExportError:
        return
    assert [each.kind for each in program.operations] == KINDS


def test_a_torn_file_is_an_error_of_whoever_reads_it(dense, tmp_path):
    path = tmp_path / "torn.tflite"
    path.write_bytes(dense[: len(dense) // 2])
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(tfkit.ExportError, match="whole"):
        tfkit.quantize_weights(path.read_bytes())
    with pytest.raises(tfkit.ExportError, match="whole"):
        tfkit.zeros_kept(model, path)
    with pytest.raises(tfkit.ExportError, match="whole"):
        tfkit.quantization_error(model, path, np.zeros((2, 4)))
