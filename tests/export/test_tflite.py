"""TFLite files: every precision, every kind of model, and what is refused before conversion."""

import ai_edge_litert.interpreter
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.export.test_artifact import module_of, raiser
from tests.export.test_signature import net, pair_net

RNG = np.random.default_rng(0)
X = RNG.random((20, 6), dtype="float32")
TOLERANCE = {
    "float32": 1e-5,
    "float16": 1e-2,
    "int8": 0.25,
    "int8_weights": 0.1,
}  # of the largest output, by check_parity's contract


def interpreter_of(artifact):
    """A LiteRT interpreter that shows the file's tensors as they are, without a delegate."""
    plain = ai_edge_litert.interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = ai_edge_litert.interpreter.Interpreter(
        str(artifact.path), experimental_op_resolver_type=plain
    )
    interpreter.allocate_tensors()
    return interpreter


def run(artifact, *arrays):
    """The outputs of one call, in the order of the file's signature."""
    interpreter = interpreter_of(artifact)
    signature = interpreter.get_signature_runner()
    answer = signature(**dict(zip(sorted(signature.get_input_details()), arrays, strict=True)))
    return [answer[name] for name in sorted(answer)]


def wide_net():
    """Weights dominate the size of the file."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(4)(layers.Dense(128, "relu")(layers.Dense(128, "relu")(inputs))))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """One model in every precision: precision -> artifact."""
    folder, model = tmp_path_factory.mktemp("wide"), wide_net()
    return {
        precision: tfkit.export_tflite(
            model, folder / f"{precision}.tflite", precision=precision, representative_data=X
        )
        for precision in TOLERANCE
    }


# What is written.


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_file_agrees_with_keras(wide, precision):
    expected, artifact = np.asarray(wide_net()(X)), wide[precision]
    got = np.concatenate([run(artifact, X[i : i + 1])[0] for i in range(len(X))])
    assert np.abs(got - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_parity_in_the_artifact_can_be_recomputed_by_hand(wide, precision):
    artifact, x = wide[precision], X[:16]
    expected = np.concatenate([wide_net()(x[i : i + 1]) for i in range(16)]).astype("float64")
    runtime = ai_edge_litert.interpreter.Interpreter(str(artifact.path))
    runtime.allocate_tensors()
    got = []
    for sample in x:
        runtime.set_tensor(runtime.get_input_details()[0]["index"], sample[None])
        runtime.invoke()
        got.append(runtime.get_tensor(runtime.get_output_details()[0]["index"])[0])
    error = np.abs(got - expected)
    assert artifact.parity.samples == 16
    assert artifact.parity.tolerance == TOLERANCE[precision]
    assert artifact.parity.max_abs_error == pytest.approx(error.max(), abs=1e-7)
    assert artifact.parity.relative_error == pytest.approx(error.max() / np.abs(expected).max(), abs=1e-7)
    assert artifact.parity.rms_error == pytest.approx(np.sqrt(np.mean(error**2)), abs=1e-7)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_inputs_and_outputs_are_float32_in_every_precision(wide, precision):
    interpreter = interpreter_of(wide[precision])
    details = interpreter.get_input_details() + interpreter.get_output_details()
    assert [each["dtype"] for each in details] == [np.float32, np.float32]


@pytest.mark.parametrize(("precision", "share"), [("float16", 0.55), ("int8", 0.35), ("int8_weights", 0.35)])
def test_fewer_bits_make_a_smaller_file(wide, precision, share):
    assert wide[precision].size_bytes < share * wide["float32"].size_bytes


def test_float16_stores_half_size_kernels(wide):
    kernels = [
        each for each in interpreter_of(wide["float16"]).get_tensor_details() if each["dtype"] == np.float16
    ]
    assert {tuple(each["shape"]) for each in kernels} >= {(128, 6), (128, 128), (4, 128)}


def test_int8_computes_in_integers_throughout(wide):
    interpreter = interpreter_of(wide["int8"])
    outside = {each["index"] for each in interpreter.get_input_details() + interpreter.get_output_details()}
    inside = [each for each in interpreter.get_tensor_details() if each["index"] not in outside]
    assert all(each["dtype"] in (np.int8, np.int32) for each in inside)  # a bias is int32
    assert sum(each["dtype"] == np.int8 for each in inside) >= 6  # three kernels, three activations


def test_a_file_stands_under_its_name_only_after_the_comparison(tmp_path, monkeypatch):
    module, seen = module_of("tflite"), []

    def compare(*arguments, compare=module.compare, **options):
        seen.append(list(tmp_path.glob("*.tflite")))
        return compare(*arguments, **options)

    monkeypatch.setattr(module, "compare", compare)
    artifact = tfkit.export_tflite(net(), tmp_path / "model.tflite")
    assert seen == [[]]
    assert list(tmp_path.iterdir()) == [artifact.path]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_comparison_that_fails_leaves_no_file_in_any_precision(tmp_path, monkeypatch, precision):
    parity = tfkit.Parity(1.0, 1.0, 1.0, TOLERANCE[precision], 8)
    monkeypatch.setattr(module_of("tflite"), "compare", lambda *arguments, **options: parity)
    with pytest.raises(
        tfkit.ParityError, match=rf"{precision} .* agree .*Received: relative error 1 .*Nothing"
    ):
        tfkit.export_tflite(net(), tmp_path / "model.tflite", precision=precision, representative_data=X)
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_not_changed(tmp_path):
    model = net()
    before = model.get_weights()
    tfkit.export_tflite(model, tmp_path / "model.tflite", precision="int8", representative_data=X)
    expect_equal(model.get_weights(), before)


# Kinds of models.


@pytest.mark.parametrize(
    "build",
    [models.dense_net, models.conv_net, models.nested_net, models.backbone, models.shared_net],
    ids=lambda f: f.__name__,
)
def test_sequential_nested_and_shared_models_are_exported(tmp_path, build):
    model = build()
    x = [RNG.random((1, *each.shape[1:]), dtype="float32") for each in model.inputs]
    (got,) = run(tfkit.export_tflite(model, tmp_path / "model.tflite"), *x)
    np.testing.assert_allclose(got, model(x if len(x) > 1 else x[0]), atol=1e-5)


def test_a_sequential_model_that_was_trained_is_exported(tmp_path):
    model = models.dense_net()
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X, X[:, :2], verbose=0)
    (got,) = run(tfkit.export_tflite(model, tmp_path / "model.tflite"), X[:1])
    np.testing.assert_allclose(got, model(X[:1]), atol=1e-5)


def test_a_model_that_is_being_pruned_is_exported(tmp_path):
    model = tfkit.prune_low_magnitude(tfkit.prune_now(net(), 0.75))
    (got,) = run(tfkit.export_tflite(model, tmp_path / "model.tflite"), X[:1])
    np.testing.assert_allclose(got, model(X[:1]), atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("pack", [list, dict])
def test_several_inputs_and_outputs_keep_their_order(tmp_path, pack, precision):
    model = pair_net(pack)
    a, b = RNG.random((8, 3), dtype="float32"), RNG.random((8, 2), dtype="float32")
    arrays = [a, b] if pack is dict else [b, a]  # Keras orders a dict by its keys
    artifact = tfkit.export_tflite(
        model, tmp_path / "model.tflite", precision=precision, representative_data=arrays
    )
    expected = keras.tree.flatten(model({"a": a[:1], "b": b[:1]} if pack is dict else [b[:1], a[:1]]))
    scale = max(float(np.abs(each).max()) for each in expected)
    for one, other in zip(run(artifact, *(each[:1] for each in arrays)), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE[precision] * scale)


def test_a_dict_model_takes_a_dataset_of_dicts(tmp_path):
    inputs = {"b": RNG.random((8, 2), dtype="float32"), "a": RNG.random((8, 3), dtype="float32")}
    data = tf.data.Dataset.from_tensor_slices(inputs).batch(3)
    artifact = tfkit.export_tflite(pair_net(dict), tmp_path / "model.tflite", representative_data=data)
    assert artifact.parity.samples == 8


def test_more_than_ten_outputs_keep_their_order(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [layers.Rescaling(float(n))(inputs) for n in range(1, 13)])
    artifact = tfkit.export_tflite(model, tmp_path / "model.tflite")
    np.testing.assert_allclose([each[0, 0] for each in artifact.predict(np.ones((1, 3)))], list(range(1, 13)))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_integer_inputs_stay_integers(tmp_path, precision):
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Embedding(10, 4)(inputs))))
    x = RNG.integers(0, 10, (8, 5), dtype="int32")
    artifact = tfkit.export_tflite(
        model, tmp_path / "model.tflite", precision=precision, representative_data=x
    )
    expected = np.asarray(model(x[:1]))
    np.testing.assert_allclose(
        run(artifact, x[:1])[0], expected, atol=TOLERANCE[precision] * np.abs(expected).max()
    )


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_batch_size_is_fixed_in_the_file(tmp_path, precision):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv2D(3, 3)(inputs))))
    x = RNG.random((7, 4, 4, 2), dtype="float32")  # no multiple of the batch
    artifact = tfkit.export_tflite(
        model, tmp_path / "model.tflite", precision=precision, representative_data=x, batch_size=2
    )
    assert interpreter_of(artifact).get_input_details()[0]["shape"].tolist() == [2, 4, 4, 2]
    expected = np.asarray(model(x[:2]))
    np.testing.assert_allclose(
        run(artifact, x[:2])[0], expected, atol=TOLERANCE[precision] * np.abs(expected).max()
    )


def test_fewer_samples_than_the_batch_are_enough(tmp_path):
    artifact = tfkit.export_tflite(net(), tmp_path / "model.tflite", representative_data=X[:2], batch_size=3)
    assert artifact.parity.samples == 2


def open_net():
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, layers.Conv2D(2, 3, padding="same", name="conv1")(inputs), name="open")


def test_an_input_shape_closes_open_sizes(tmp_path):
    model, x = open_net(), RNG.random((1, 8, 6, 3), dtype="float32")
    artifact = tfkit.export_tflite(model, tmp_path / "model.tflite", input_shape=(8, 6, 3))
    np.testing.assert_allclose(run(artifact, x)[0], model(x), atol=1e-5)


def test_dropout_and_batch_statistics_do_not_act(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dropout(0.9)(layers.BatchNormalization()(inputs)))
    (got,) = run(tfkit.export_tflite(model, tmp_path / "model.tflite"), X[:1])
    np.testing.assert_allclose(got, X[:1] / np.sqrt(1 + 1e-3), rtol=1e-5)


def test_a_model_that_tensorflow_cannot_convert_is_refused(tmp_path):
    inputs = keras.Input((4, 4))
    model = keras.Model(inputs, keras.ops.svd(inputs)[1], name="svd_net")
    with pytest.raises(
        tfkit.ExportError,
        match=r"able to convert.*Received: model='svd_net', precision='float32'.*lacks Svd.*Build these",
    ):
        tfkit.export_tflite(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


# What is refused before any conversion.


@pytest.fixture
def no_conversion(monkeypatch):
    """Fails the test when a conversion begins; pytest's Failed is no Exception that could be caught."""
    for owner, name in [(tf.saved_model, "save"), (tf.lite.TFLiteConverter, "from_saved_model")]:
        monkeypatch.setattr(owner, name, lambda *arguments, **options: pytest.fail("a conversion began"))


def nan_net():
    model = models.nested_net()
    kernel = model.get_layer("wrapper").get_layer("backbone").get_layer("conv2").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    return model


def infinite_net():
    model = net()
    model.get_layer("head").bias.assign([0.0, np.inf])
    return model


def nan_outside_the_graph_net():
    model = models.hybrid_net()
    model.extra.kernel.assign(np.full((3, 2), np.nan))
    return model


def unbuilt():
    return keras.Sequential([layers.Dense(2)], name="raw")


REFUSED = {
    "int8 without data": (net, {"precision": "int8"}, tfkit.ArgumentError,
        r"int8 needs `representative_data`.*Received: representative_data=None.*Pass about 100"),
    "unknown precision": (net, {"precision": "int4"}, tfkit.ArgumentError,
        r"`precision` must be one of float32, float16, int8, int8_weights.*Received: precision='int4'"),
    "batch of zero": (net, {"batch_size": 0}, tfkit.ArgumentError,
        r"`batch_size` must be at least 1.*Received: batch_size=0"),
    "batch of 1.5": (net, {"batch_size": 1.5}, tfkit.ArgumentError,
        r"`batch_size` must be at least 1.*Received: batch_size=1\.5"),
    "wrong shape of data": (net, {"representative_data": np.ones((4, 5))}, tfkit.ArgumentError,
        r"`representative_data` must hold .*Received: .*\(5,\).*model takes \[\(6,\)\]"),
    "no data": (net, {"representative_data": np.ones((0, 6))}, tfkit.ArgumentError,
        r"at least one sample.*Received: representative_data"),
    "inputs of different length": (pair_net, {"representative_data": [np.ones((4, 2)), np.ones((3, 3))]},
        tfkit.ArgumentError, r"`representative_data` must .*Received: representative_data"),
    "one array for two inputs": (pair_net, {"representative_data": np.ones((4, 2))}, tfkit.ArgumentError,
        r"`representative_data` must hold .*Received: .*\(2,\), \(3,\)"),
    "open sizes": (open_net, {}, tfkit.ArgumentError,
        r"must have fixed sizes.*Received: model='open' with .*\(1, None, None, 3\).*Pass input_shape"),
    "input_shape of another rank": (open_net, {"input_shape": (8, 8)}, tfkit.ArgumentError,
        r"`input_shape` must agree.*Received: input_shape=\(8, 8\)"),
    "NaN": (nan_net, {}, tfkit.NonFiniteWeightsError,
        r"finite number.*Received: model='outer'.*wrapper/backbone/conv2/kernel.*Train again"),
    "infinity": (infinite_net, {}, tfkit.NonFiniteWeightsError,
        r"finite number.*Received: model='net'.*head/bias.*Train again"),
    "NaN outside the graph": (nan_outside_the_graph_net, {}, tfkit.NonFiniteWeightsError,
        r"finite number.*Received: model='hybrid'.*extra/kernel.*Train again"),
    "unbuilt": (unbuilt, {}, tfkit.UnbuiltModelError, r"must be built.*Received: model='raw'.*keras\.Input"),
    "no model": (lambda: 7, {}, tfkit.ArgumentTypeError,
        r"must be a Keras 3 model.*Received: model=7.*Load a file"),
    "subclassed": (models.subclassed_net, {}, tfkit.UnbuiltModelError,
        r"must know its inputs.*Received: model='subclassed'.*Wrap it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("no_conversion")
def test_is_refused_before_any_conversion(tmp_path, case):
    build, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        tfkit.export_tflite(build(), tmp_path / "new" / "model.tflite", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_conversion")
def test_an_unwritable_folder_is_refused_before_any_conversion(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        tfkit.OutputPathError, match=r"can be written to.*Received: path=.*Choose another place"
    ):
        tfkit.export_tflite(net(), tmp_path / "file" / "model.tflite")


def test_an_error_inside_the_converter_is_an_export_error(tmp_path, monkeypatch):
    class Broken:
        convert = staticmethod(raiser(ValueError("broken inside")))

    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_saved_model", lambda *arguments, **options: Broken())
    with pytest.raises(tfkit.ExportError, match=r"Received: model='net'.*broken inside"):
        tfkit.export_tflite(net(), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_int8_of_a_recurrent_loop_is_refused_before_it_can_crash(tmp_path, layer):
    model = keras.Sequential([keras.Input((6, 3)), layer(4, name="loop")])
    rule = r"int8 needs recurrent layers that are unrolled.*Received: model=.*with loop.*unroll=True"
    with pytest.raises(tfkit.ExportError, match=rule):
        tfkit.export_tflite(
            model, tmp_path / "m.tflite", precision="int8", representative_data=np.ones((4, 6, 3))
        )


def test_int8_of_an_unrolled_layer_agrees(tmp_path):
    model = keras.Sequential([keras.Input((3, 2)), layers.GRU(4, unroll=True)])
    x = RNG.random((16, 3, 2))
    artifact = tfkit.export_tflite(model, tmp_path / "m.tflite", precision="int8", representative_data=x)
    np.testing.assert_allclose(artifact.predict(x), model(x), atol=0.1)


def test_another_size_than_the_files_is_refused(tmp_path):
    """LiteRT would resize the input and compute on."""
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs))
    artifact = tfkit.export_tflite(model, tmp_path / "m.tflite", input_shape=(8, 8, 3))
    with pytest.raises(tfkit.ExportError, match=r"shaped like its inputs.*Received: arrays of shape"):
        artifact.predict(np.ones((2, 6, 8, 3)))


def test_integer_inputs_without_data_are_proven_on_more_than_zeros(tmp_path):
    model = keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(4, 2, name="table")])
    artifact = tfkit.export_tflite(model, tmp_path / "m.tflite")
    values = np.asarray(model.get_layer("table").embeddings)
    model.get_layer("table").embeddings.assign(np.vstack([values[:1], values[1:] + 1]))
    from tfkit.export.signature import input_specs, random_samples

    (x,) = random_samples(input_specs(model, batch_size=1))
    assert not tfkit.check_parity(model, artifact, x).passed
