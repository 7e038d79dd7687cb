"""What ships to which target and why, with small models; the runtimes are the real ones."""

import dataclasses
import hashlib
import importlib
import json
import types

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests.export.sparse_files import cluster
from tests.export.target_nets import X, eligible_net, export, never_net, open_net, pruned
from tests.export.test_signature import pair_net
from tfkit.export.candidates import DEVICE, SERVER, WASM, WEBGPU
from tfkit.export.operations import read_program

RNG = np.random.default_rng(0)
ALL = [
    ("desktop", SERVER),
    ("desktop", DEVICE),
    ("gpu", SERVER),
    ("gpu", DEVICE),
    ("mobile", DEVICE),
    ("web", WASM),
    ("web", WEBGPU),
]


def module_of(name):
    return importlib.import_module(f"tfkit.export.{name}")


def files(report):
    return {(row["target"], row["runtime"]): row["file"] for row in report.rows}


def reason(report, target, runtime):
    (found,) = [r["reason"] for r in report.rows if (r["target"], r["runtime"]) == (target, runtime)]
    return found


# Every target at once, for a model that the sparse kernels take.


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    return export(
        eligible_net(),
        folder,
        ("desktop", "gpu", "mobile", "web"),
        representative_data=X,
        runs=3,
        preprocessing=lambda pixels: pixels / 255,
        baseline=cluster(False),
        evaluate=lambda predict: float(np.asarray(predict(X)).shape[0]),
    )


@pytest.fixture(scope="module")
def without_data(tmp_path_factory):
    return export(eligible_net(), tmp_path_factory.mktemp("without"), ("desktop", "mobile", "gpu"))


def test_each_target_gets_what_runs_best_there(full):
    int8, half, sparse = "model-int8.tflite", "model-float16.tflite", "model-sparse-float16.tflite"
    chosen = ["saved_model", int8, "saved_model", half, sparse, sparse, half]
    assert list(files(full).items()) == list(zip(ALL, chosen, strict=True))


def test_without_data_float_ships_and_the_reason_says_so(without_data):
    assert files(without_data)["desktop", DEVICE] == "model-float32.tflite"
    assert "not int8: no representative data" in reason(without_data, "desktop", DEVICE)
    assert files(without_data)["mobile", DEVICE] == "model-sparse-float16.tflite"


def test_the_reason_of_a_sparse_file_tells_its_zeros(full):
    assert "sparse kernels take it, with 90% zeros" in reason(full, "mobile", DEVICE)


def test_files_for_gpus_are_never_sparse_encoded(full):
    for target, runtime in [("gpu", DEVICE), ("web", WEBGPU)]:
        assert not read_program(full.path(target, runtime).read_bytes()).sparse
    assert read_program(full.path("mobile").read_bytes()).sparse


def test_a_sparse_file_was_proven_without_avx_and_in_the_browser(full):
    proofs = {(row["target"], row["runtime"]): row["proofs"] for row in full.rows}
    assert "LiteRT without AVX" in proofs["mobile", DEVICE]
    assert proofs["web", WASM][-1] == "LiteRT.js on wasm in Chromium"
    assert proofs["web", WEBGPU] == ("LiteRT on this processor", "LiteRT.js on WebGPU in Chromium")
    assert all(proofs.values())


@pytest.mark.parametrize("place", ALL, ids="-".join)
def test_what_ships_computes_what_keras_computes(full, place):
    limits = {"float32": 1e-5, "float16": 1e-2, "int8": 0.25}
    (row,) = [row for row in full.rows if (row["target"], row["runtime"]) == place]
    parity = tfkit.check_parity(eligible_net(), full.path(*place), X, tolerance=limits[row["precision"]])
    assert parity.passed


def test_a_sparse_file_that_stays_here_has_no_time(full):
    times = full.table.set_index(["target", "runtime"]).latency_ms
    assert np.isnan(times["mobile", DEVICE])
    assert times["desktop", DEVICE] > 0
    assert full.table.speedup[1] == pytest.approx(
        {each["name"]: each for each in full.manifest["considered"]}["float32"]["latency_ms"]
        / times["desktop", DEVICE]
    )


def test_int8_that_is_slower_here_is_told(tmp_path, monkeypatch):
    times = pd.DataFrame({"name": ["int8", "float32"], "latency_ms": [2.0, 1.0]})
    monkeypatch.setattr(module_of("candidates"), "benchmark", lambda files, runs: times)
    report = export(never_net(), tmp_path, ("desktop",), representative_data=X, runs=1)
    found = [note for note in report.notes if "times as fast as float32 on this machine" in note]
    assert [note.split()[2] for note in found] == ["0.50"]


def test_the_stages_stand_side_by_side(full):
    stages = [each["stage"] for each in full.models]
    assert stages[:2] == ["unpruned, Keras", "as given, Keras"]
    assert set(stages[2:]) == {"saved_model", "int8", "float16", "sparse-float16"}
    assert {each["score"] for each in full.models} == {8.0}
    assert full.models[1]["size_bytes"] == 4 * eligible_net().count_params()


def test_the_manifest_knows_every_file_by_size_and_hash(full):
    manifest = json.loads((full.directory / "manifest.json").read_text())
    found = {
        str(path.relative_to(full.directory)): path.read_bytes()
        for path in full.directory.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "report.html")
    }
    assert {each["file"]: each["size_bytes"] for each in manifest["files"]} == {
        name: len(content) for name, content in found.items()
    }
    assert {each["file"]: each["sha256"] for each in manifest["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in found.items()
    }


def test_the_manifest_counts_weights_and_zeros(full):
    weights = np.concatenate([each.ravel() for each in eligible_net().get_weights()])
    assert full.manifest["model"] == {
        "name": "eligible",
        "weights": weights.size,
        "zeros": int((weights == 0).sum()),
    }
    assert full.manifest["versions"]["keras"] == keras.__version__


def test_a_report_is_read_back(full):
    again = tfkit.ExportReport.load(full.directory)
    assert dataclasses.astuple(again) == dataclasses.astuple(full)


def test_a_path_is_found_by_target_and_runtime(full):
    assert full.path("desktop").name == "saved_model"
    assert full.path("desktop", DEVICE).name == "model-int8.tflite"
    with pytest.raises(tfkit.ArgumentError, match=r"No such artifact.*'tv', None.*There are: desktop on T"):
        full.path("tv")


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"targets": 3}'])
def test_a_report_that_is_torn_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(tfkit.ArgumentError, match=r"folder that `export` wrote. Received: '.*\(\w+"):
        tfkit.ExportReport.load(tmp_path)


def test_the_saved_model_has_the_preprocessing_inside(full):
    served = tf.saved_model.load(str(full.path("gpu"))).signatures["raw"]
    pixels = RNG.integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    got = served(tf.constant(pixels))["output_0"]
    np.testing.assert_allclose(got, eligible_net()(pixels / 255), atol=1e-5)


def test_the_page_names_files_reasons_and_versions(full):
    text = full.page.read_text()
    for words in ("model-int8.tflite", "90% zeros", f"keras {keras.__version__}", "What ships where"):
        assert words in text
    assert "http" not in text  # it needs nothing beside it


# Models that the sparse kernels take otherwise or not at all.


def test_int8_goes_first_where_zeros_are_few(tmp_path):
    model = eligible_net()
    for name in ("wide", "last"):
        model.get_layer(name).kernel.assign(RNG.normal(size=model.get_layer(name).kernel.shape))
    report = export(pruned(model, 0.7), tmp_path, ("mobile",), representative_data=X)
    assert files(report) == {("mobile", DEVICE): "model-int8.tflite"}


def test_a_model_is_rewritten_for_the_sparse_kernels(tmp_path):
    model = eligible_net(same=True)
    assert tfkit.explain_deployment(model, "mobile").attrs["verdict"] == "dense"
    report = export(model, tmp_path, ("mobile",))
    assert files(report) == {("mobile", DEVICE): "model-sparse-float16.tflite"}
    assert tfkit.check_parity(model, report.path("mobile"), X, tolerance=1e-2).passed


def test_a_model_that_no_sparse_kernel_takes_ships_dense_and_the_report_says_why(tmp_path):
    report = export(never_net(), tmp_path, ("mobile",))
    assert files(report) == {("mobile", DEVICE): "model-float16.tflite"}
    assert any("sparse kernels do not take it" in note and "3x3" in note for note in report.notes)


def test_a_model_that_xnnpack_would_compute_wrong_ships_dense(tmp_path):
    model = cluster(True)
    assert tfkit.explain_deployment(model, "mobile").attrs["verdict"] in ("wrong", "dense")
    report = export(model, tmp_path, ("mobile",))
    assert not read_program(report.path("mobile").read_bytes()).sparse


def test_a_sparse_file_that_is_wrong_without_avx_is_passed_over(tmp_path, monkeypatch):
    """Even if the analysis were mistaken, the proof stands."""
    mistaken = types.SimpleNamespace(verdict=module_of("xnnpack").Verdict.SPARSE, zeros=0.95)
    monkeypatch.setattr(module_of("candidates"), "analyse", lambda program: mistaken)
    report = export(cluster(True), tmp_path, ("mobile",))
    assert files(report) == {("mobile", DEVICE): "model-float16.tflite"}
    assert "not sparse-float16: A file in float16 must agree" in reason(report, "mobile", DEVICE)


# Without qemu.


@pytest.fixture
def no_qemu(monkeypatch):
    for name in ("candidates", "tflite", "apart"):
        monkeypatch.setattr(module_of(name), "emulator", lambda: None)
        monkeypatch.setattr(module_of(name), "has_avx", lambda: True)


def test_without_qemu_a_sparse_file_does_not_ship(tmp_path, no_qemu):
    report = export(eligible_net(), tmp_path, ("mobile",))
    assert files(report) == {("mobile", DEVICE): "model-float16.tflite"}
    assert "not sparse-float16: it could not be proven" in reason(report, "mobile", DEVICE)
    assert "qemu-user" in report.page.read_text()


def test_without_qemu_a_sparse_file_ships_if_that_is_accepted_and_the_report_says_so(tmp_path, no_qemu):
    report = export(eligible_net(), tmp_path, ("mobile",), accept_unproven=True)
    assert files(report) == {("mobile", DEVICE): "model-sparse-float16.tflite"}
    assert report.rows[0]["proofs"] == ("LiteRT on this processor",)
    assert any(note.startswith("NOT proven as without AVX") for note in report.notes)
    assert "NOT proven as without AVX" in report.page.read_text()


def test_without_a_browser_the_report_says_that_nothing_ran_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module_of("candidates"), "find_browser", lambda: None)
    report = export(never_net(), tmp_path, ("web",))
    assert [note for note in report.notes if note.startswith("Nothing was run in a browser")]
    assert report.rows
    assert all(row["proofs"] == ("LiteRT on this processor",) for row in report.rows)


# What falls back, what loses too much.


def test_what_falls_back_on_webgpu_does_not_ship_there_and_a_note_says_so(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = keras.ops.repeat(layers.Conv2D(4, 3)(inputs), 2, axis=1)  # a TILE in five dimensions
    report = export(keras.Model(inputs, layers.Conv2D(3, 3)(x)), tmp_path, ("web", "gpu"))
    assert list(files(report)) == [("web", WASM), ("gpu", SERVER), ("gpu", DEVICE)]
    (note,) = [each for each in report.notes if each.startswith("Nothing ships to web for LiteRT.js on Web")]
    assert "float16: parts of it fall back" in note
    assert note.endswith("Use model-float16.tflite there, on LiteRT.js on wasm.")
    assert "GPU delegates leave" in reason(report, "gpu", DEVICE)


def judge(worst):
    """A metric that is 1 for Keras and `worst` for what rounds, as int8 does."""
    wanted = eligible_net().predict(X, verbose=0)
    step = np.abs(wanted).max() / 500  # float16 is off by less, int8 by more
    return lambda predict: 1.0 if np.abs(predict(X) - wanted).max() < step else worst


def test_int8_that_loses_too_much_is_passed_over(tmp_path):
    report = export(eligible_net(), tmp_path, ("desktop",), representative_data=X, evaluate=judge(0.97))
    assert files(report)["desktop", DEVICE] == "model-float32.tflite"
    assert "not int8: its score is 0.97 against 1, and at most 1%" in reason(report, "desktop", DEVICE)
    assert report.table.score.tolist() == [1.0, 1.0]
    assert "score 1" in report.page.read_text()


def test_int8_that_loses_little_enough_ships(tmp_path):
    report = export(
        eligible_net(),
        tmp_path,
        ("desktop",),
        representative_data=X,
        evaluate=judge(0.97),
        largest_drop=0.05,
    )
    assert files(report)["desktop", DEVICE] == "model-int8.tflite"
    assert report.table.score.tolist() == [1.0, 0.97]


@pytest.mark.parametrize(
    "prune",
    [
        lambda model: tfkit.prune_now(model, 0.8),
        lambda model: tfkit.plan_channel_pruning(model, ratio=0.5, multiple_of=2).mask(model),
    ],
    ids=["magnitude", "channels"],
)
def test_a_pruned_models_zeros_are_kept_in_int8(tmp_path, prune):
    model = prune(never_net())
    report = export(model, tmp_path, ("desktop",), representative_data=X)
    table = tfkit.zeros_kept(model, report.path("desktop", DEVICE))
    assert table.sparsity_keras.max() > 0.4
    assert (table.zeros_lost.dropna() == 0).all()
    assert table.zeros_lost.notna().any()


# Kinds of models and data.


def test_several_inputs_and_outputs_keep_their_order(tmp_path):
    model = pair_net(dict)
    arrays = [RNG.random((8, 3), dtype="float32"), RNG.random((8, 2), dtype="float32")]
    seen = []

    def evaluate(predict):
        seen.append([np.shape(each) for each in predict(arrays)])
        return 1

    report = export(model, tmp_path, ("desktop", "mobile"), representative_data=arrays, evaluate=evaluate)
    assert files(report)["mobile", DEVICE] == "model-int8.tflite"
    assert len(seen) == 3  # Keras, SavedModel, int8
    assert all(each == seen[0] for each in seen)
    assert tfkit.check_parity(model, report.path("desktop"), arrays).passed


def test_a_dataset_gives_the_data(tmp_path):
    data = tf.data.Dataset.from_tensor_slices((X, np.zeros(8))).batch(3)
    report = export(never_net(), tmp_path, ("mobile",), representative_data=data)
    assert files(report) == {("mobile", DEVICE): "model-int8.tflite"}


def test_sizes_and_batch_are_left_open_on_request(tmp_path):
    model = open_net()
    report = export(model, tmp_path, "mobile", batch_size=None, input_shape=(None, None, 3), runs=2)
    interpreter = module_of("runners").load(report.path("mobile"), "tflite").__dict__["_interpreter"]
    (details,) = interpreter.get_input_details()
    assert details["shape_signature"].tolist() == [-1, -1, -1, 3]
    index = details["index"]
    for shape in [(1, 9, 7, 3), (3, 16, 12, 3)]:
        x = RNG.random(shape, dtype="float32")
        interpreter.resize_tensor_input(index, shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, x)
        interpreter.invoke()
        got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        np.testing.assert_allclose(got, model(x), rtol=1e-2, atol=1e-3)


def test_one_target_may_be_named_alone_or_twice(tmp_path):
    report = export(pair_net(), tmp_path, ("gpu", "gpu"))
    assert list(files(report)) == [("gpu", SERVER), ("gpu", DEVICE)]
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_quantized_ships_in_floats(tmp_path):
    """TensorFlow's calibrator crashes on the loop of a recurrent layer, so int8 is refused before."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 4)), layers.LSTM(3, name="cell"), layers.Dense(2)])
    x = RNG.random((4, 5, 4), dtype="float32")
    report = export(model, tmp_path, ("desktop",), representative_data=x)
    assert files(report)["desktop", DEVICE] == "model-float32.tflite"
    assert "not int8: int8 needs recurrent layers that are unrolled" in reason(report, "desktop", DEVICE)
