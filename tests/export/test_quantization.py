"""Weights as int8: what the file holds, that it computes in float32, and what is refused."""

import ai_edge_litert.schema_py_generated as schema
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

import tfkit
from tests import models
from tests.export.test_artifact import module_of, raiser
from tests.export.test_signature import pair_net
from tfkit.export.operations import read_program
from tfkit.export.signature import input_specs, serving_function
from tfkit.litert import convert, trace

RNG = np.random.default_rng(0)
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def image_net(seed=0):
    """One layer of each kind that holds a kernel, all of them above 1024 weights but `small`."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 16))
    x = layers.Conv2D(160, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2DTranspose(8, 2, 2, name="up")(x)
    x = layers.Conv2D(4, 1, name="small")(x)
    return keras.Model(inputs, layers.Dense(6, name="head")(layers.Flatten()(x)), name="image_net")


X = RNG.random((8, 8, 8, 16), dtype="float32")


def sparse_bytes(model):
    def encode(converter):
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]

    return convert({"serve": trace(serving_function(model), input_specs(model, batch_size=1))}, encode)


def operators(content):
    """Each operator of a file as (kind, types it takes, types it gives), read with the schema alone."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content)))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    tensors = model.subgraphs[0].tensors
    for each in model.subgraphs[0].operators:
        code = model.operatorCodes[each.opcodeIndex]
        kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        yield (
            kind,
            *([types[tensors[k].type] for k in side if k >= 0] for side in (each.inputs, each.outputs)),
        )


def weights(content):
    """Every int8 tensor of a file as (values, zero points), read with LiteRT."""
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    return [
        (interpreter.get_tensor(each["index"]), each["quantization_parameters"])
        for each in interpreter.get_tensor_details()
        if each["dtype"] == np.int8
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    return {
        precision: tfkit.export_tflite(
            image_net(), folder / f"{precision}.tflite", precision=precision, representative_data=X
        )
        for precision in ("float32", "int8_weights")
    }


def test_every_operator_computes_in_float32(exported):
    kinds = list(operators(exported["int8_weights"].path.read_bytes()))
    assert {kind for kind, *_ in kinds} >= set(WEIGHTED)
    for kind, takes, gives in kinds:
        assert set(gives) == {"FLOAT32"}
        assert ("INT8" in takes) == (kind == "DEQUANTIZE")


def test_the_weights_are_int8_with_one_scale_an_output_channel_and_zero_point_zero(exported):
    found = weights(exported["int8_weights"].path.read_bytes())
    # conv, depthwise, up and head; the 32 weights of `small` stay
    assert sorted(value.size for value, _ in found) == [1440, 5120, 6144, 23040]
    assert sorted(len(each["scales"]) for _, each in found) == [6, 8, 160, 160]
    assert all((each["zero_points"] == 0).all() for _, each in found)


def test_each_weight_is_rounded_to_the_nearest_of_255_steps(exported):
    kernel = np.asarray(image_net().get_layer("head").kernel, "float64").T
    scale = np.abs(kernel).max(axis=1, keepdims=True) / 127
    (stored,) = [value for value, _ in weights(exported["int8_weights"].path.read_bytes()) if len(value) == 6]
    assert np.abs(stored * scale - kernel).max() <= 0.5 * scale.max() * (1 + 1e-5)


def test_quantize_weights_gives_the_weights_that_the_export_writes(exported):
    ours = weights(tfkit.quantize_weights(exported["float32"].path.read_bytes()))
    written = weights(exported["int8_weights"].path.read_bytes())
    for (one, _), (other, _) in zip(ours, written, strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_needs_no_data(tmp_path):
    artifact = tfkit.export_tflite(image_net(), tmp_path / "m.tflite", precision="int8_weights")
    assert (artifact.precision, artifact.parity.tolerance) == ("int8_weights", 0.1)


def test_small_weights_stay_float32(tmp_path):
    artifact = tfkit.export_tflite(models.dense_net(), tmp_path / "m.tflite", precision="int8_weights")
    assert weights(artifact.path.read_bytes()) == []


def test_a_kernel_used_twice_stays_one(tmp_path):
    shared = layers.Dense(64, name="shared")
    inputs = keras.Input((64,))
    model = keras.Model(inputs, shared(keras.ops.tanh(shared(inputs))))
    artifact = tfkit.export_tflite(model, tmp_path / "m.tflite", precision="int8_weights")
    assert [value.shape for value, _ in weights(artifact.path.read_bytes())] == [(64, 64)]


def test_a_recurrent_loop_is_exported(tmp_path):
    model = keras.Sequential([keras.Input((6, 16)), layers.GRU(32), layers.Dense(2)])
    x = RNG.random((4, 6, 16))
    artifact = tfkit.export_tflite(
        model, tmp_path / "m.tflite", precision="int8_weights", representative_data=x
    )
    assert artifact.parity.relative_error < 0.05


@pytest.mark.slow
def test_mobilenet_agrees_within_a_fifth_of_what_is_allowed(tmp_path):
    keras.utils.set_random_seed(0)
    model = tfkit.models.load_base_model("MobileNetV2", input_shape=(96, 96, 3), pooling="avg")
    x = RNG.uniform(0, 255, (4, 96, 96, 3))
    artifact = tfkit.export_tflite(
        model, tmp_path / "m.tflite", precision="int8_weights", representative_data=x
    )
    assert artifact.parity.relative_error < 0.02
    assert artifact.size_bytes < 2_600_000  # 2.2 million weights


@pytest.mark.parametrize("seed", [0, 4])
def test_int8_finds_the_ranges_of_several_inputs(tmp_path, seed):
    """A list for the calibrator left errors of 0.33 and 0.25 here."""
    keras.utils.set_random_seed(seed)
    arrays = [np.random.default_rng(seed).random((8, size)) for size in (2, 3)]
    artifact = tfkit.export_tflite(
        pair_net(list), tmp_path / "m.tflite", precision="int8", representative_data=arrays
    )
    assert artifact.parity.relative_error < 0.03


# --- sparse-encoded files -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned():
    """90% zeros everywhere but in the head."""
    return tfkit.prune_now(image_net(), 0.9, layers=["conv", "depthwise", "up", "small"])


def test_what_is_sparse_encoded_stays_so_and_the_rest_becomes_int8(pruned):
    before = sparse_bytes(pruned)
    after = tfkit.quantize_weights(before)
    for content in (before, after):
        assert sum(each.sparse for each in read_program(content).tensors) == 4
    assert [value.shape for value, _ in weights(after)] == [(6, 1024)]
    assert len(after) < 0.7 * len(before)


def test_a_sparse_file_with_int8_weights_agrees(pruned, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(tfkit.quantize_weights(sparse_bytes(pruned)))
    assert tfkit.check_parity(pruned, path, X, tolerance=0.02).passed


# --- what is refused ------------------------------------------------------------------------------


def test_a_path_is_refused(exported):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must be the bytes.*Received: content=.*read_bytes"):
        tfkit.quantize_weights(str(exported["float32"].path))


def test_other_bytes_are_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"must be the bytes of a \.tflite.*Received: 9 bytes"):
        tfkit.quantize_weights(b"some text")


def test_a_file_that_has_int8_already_is_refused(exported):
    content = exported["int8_weights"].path.read_bytes()
    with pytest.raises(tfkit.ArgumentError, match=r"float32 file.*Received: .*int8 tensors.*float32"):
        tfkit.quantize_weights(content)


def test_an_error_inside_the_quantizer_is_an_export_error(exported, monkeypatch):
    monkeypatch.setattr(module_of("quantization"), "_quantize", raiser(ValueError("broken inside")))
    with pytest.raises(tfkit.ExportError, match=r"able to quantize.*Received: a file of.*broken inside"):
        tfkit.quantize_weights(exported["float32"].path.read_bytes())


def test_dynamic_range_quantization_never_comes_out(exported, monkeypatch):
    def dynamic(content):
        from ai_edge_quantizer import quantizer, recipe

        return quantizer.Quantizer(content, recipe.dynamic_wi8_afp32()).quantize().quantized_model

    monkeypatch.setattr(module_of("quantization"), "_quantize", dynamic)
    with pytest.raises(tfkit.ExportError, match=r"through DEQUANTIZE.*Received: .*CONV_2D.* takes int8"):
        tfkit.quantize_weights(exported["float32"].path.read_bytes())
