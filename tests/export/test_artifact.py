"""Nothing half-written ever stands under an artifact's name."""

import importlib
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests.export.test_signature import net, pair_net
from tfkit.export.apart import run_apart
from tfkit.export.artifact import output_path
from tfkit.files import staged

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
X = RNG.random((5, 6), dtype="float32")
EXPORTS = {"tflite": tfkit.export_tflite, "saved_model": tfkit.export_saved_model}
PARITY = tfkit.Parity(0.0, 0.0, 0.0, 1e-5, 1)


def module_of(kind):
    return importlib.import_module(f"tfkit.export.{kind}")


def put_before(path, kind):
    """Makes an earlier artifact stand at `path`."""
    if kind == "tflite":
        path.write_bytes(b"\0\0\0\0TFL3 before")
    else:
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"before")


def stands_before(path, kind):
    file = path if kind == "tflite" else path / "saved_model.pb"
    return file.is_file() and file.read_bytes().endswith(b"before")


# output_path.


def test_output_path_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b" / "model.tflite"
    assert output_path(str(path), "tflite") == path
    assert (tmp_path / "a" / "b").is_dir()


def test_output_path_leaves_nothing_in_the_folder(tmp_path):
    output_path(tmp_path / "model.tflite", "tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file/model.tflite", "file/deeper/model.tflite"])
def test_a_place_below_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(
        tfkit.OutputPathError, match=r"folder that can be written.*Received: path=.*Choose another"
    ):
        output_path(tmp_path / below, "tflite")


# staged.


def test_what_was_staged_gets_its_name(tmp_path):
    with staged(tmp_path / "model") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "model").read_text() == "new"


def test_while_staged_nothing_stands_under_the_name(tmp_path):
    with staged(tmp_path / "model") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "model").exists()


def test_the_temporary_name_lies_on_the_same_disk(tmp_path):
    with staged(tmp_path / "model") as temporary:
        temporary.write_text("new")
        assert tmp_path in temporary.parents


@pytest.mark.parametrize("kind", EXPORTS)
def test_what_stood_there_is_replaced(tmp_path, kind):
    path = tmp_path / "model"
    put_before(path, kind)
    with staged(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def stage(path, before_the_end=lambda: None):
    with staged(path) as temporary:
        temporary.write_text("new")
        before_the_end()


def raiser(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", EXPORTS)
def test_an_interrupted_block_keeps_what_stood_there(tmp_path, kind, error):
    put_before(tmp_path / "model", kind)
    with pytest.raises(error):
        stage(tmp_path / "model", raiser(error))
    assert stands_before(tmp_path / "model", kind)


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_failed_last_move_keeps_what_stood_there(tmp_path, kind, monkeypatch):
    put_before(tmp_path / "model", kind)
    monkeypatch.setattr(os, "replace", raiser(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        stage(tmp_path / "model")
    assert stands_before(tmp_path / "model", kind)


def test_staging_leaves_no_other_file(tmp_path):
    (tmp_path / "model").mkdir()
    stage(tmp_path / "model")
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_an_interrupted_block_leaves_no_other_file(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(RuntimeError):
        stage(tmp_path / "model", raiser(RuntimeError))
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


# Artifact.


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export(net(), folder / kind) for kind, export in EXPORTS.items()}


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_artifact_tells_what_stands_at_its_path(exported, kind):
    artifact = exported[kind]
    files = [artifact.path] if kind == "tflite" else [p for p in artifact.path.rglob("*") if p.is_file()]
    assert (artifact.path.name, artifact.kind, artifact.precision) == (kind, kind, "float32")
    assert artifact.size_bytes == sum(each.stat().st_size for each in files)
    assert artifact.parity.passed


def test_an_artifact_without_a_file_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"\.tflite file or a SavedModel.*Received: path=.*neither"):
        tfkit.Artifact.at(tmp_path / "missing", "float32", PARITY)


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("x", [X, X.astype("float64"), [X]], ids=["array", "float64", "list"])
def test_predict_gives_what_keras_gives(exported, kind, x):
    np.testing.assert_allclose(exported[kind].predict(x), net()(X), atol=1e-6)


@pytest.mark.parametrize("kind", EXPORTS)
def test_predict_gives_a_list_for_several_outputs(tmp_path, kind):
    model, x = pair_net(), [RNG.random((5, 2), dtype="float32"), RNG.random((5, 3), dtype="float32")]
    got = EXPORTS[kind](model, tmp_path / "model").predict(x)
    for one, other in zip(got, model(x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_predict_works_for_an_artifact_of_a_larger_batch(tmp_path):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv2D(3, 3)(inputs))))
    x = RNG.random((4, 4, 4, 2), dtype="float32")
    artifact = tfkit.export_tflite(model, tmp_path / "model.tflite", batch_size=2)
    np.testing.assert_allclose(artifact.predict(x), model(x), atol=1e-6)


# Exports that fail.


def wrong_run(change):
    return lambda path, arrays: [change(each) for each in run_apart(path, arrays)]


WRONG = {
    "shifted": lambda values: values + 0.5,
    "NaN": lambda values: values * np.nan,
    "of another shape": lambda values: values[:, :1],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", EXPORTS)
def test_an_artifact_with_wrong_outputs_never_gets_its_name(tmp_path, monkeypatch, kind, wrong):
    monkeypatch.setattr(module_of(kind), "run_apart", wrong_run(WRONG[wrong]))
    with pytest.raises(tfkit.ExportError):
        EXPORTS[kind](net(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_failed_comparison_says_by_how_much(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module_of(kind), "run_apart", wrong_run(WRONG["shifted"]))
    with pytest.raises(
        tfkit.ParityError, match=r"float32 .* agree .*1e-05.*Received: relative error .*Nothing"
    ):
        EXPORTS[kind](net(), tmp_path / "model")


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_failed_comparison_keeps_what_stood_there(tmp_path, monkeypatch, kind):
    put_before(tmp_path / "model", kind)
    monkeypatch.setattr(module_of(kind), "run_apart", wrong_run(WRONG["shifted"]))
    with pytest.raises(tfkit.ParityError):
        EXPORTS[kind](net(), tmp_path / "model")
    assert stands_before(tmp_path / "model", kind)


@pytest.mark.parametrize("before", [False, True], ids=["nothing before", "an artifact before"])
@pytest.mark.parametrize("kind", EXPORTS)
def test_a_failed_conversion_leaves_the_folder_as_it_was(tmp_path, monkeypatch, kind, before):
    if before:
        put_before(tmp_path / "model", kind)
    monkeypatch.setattr(
        tf.saved_model, "save", raiser(RuntimeError("the converter broke"))
    )  # either export begins with it
    with pytest.raises(RuntimeError, match="the converter broke"):
        EXPORTS[kind](net(), tmp_path / "model")
    assert [each.name for each in tmp_path.iterdir()] == ["model"] * before
    assert not before or stands_before(tmp_path / "model", kind)


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_replaces_an_earlier_one(tmp_path, kind):
    EXPORTS[kind](net(), tmp_path / "model")
    model = net()
    model.get_layer("head").bias.assign([3.0, -3.0])
    artifact = EXPORTS[kind](model, tmp_path / "model")
    np.testing.assert_allclose(artifact.predict(X), model(X), atol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_folder_of_other_files_is_never_deleted(tmp_path, kind):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "one.png").touch()
    with pytest.raises(tfkit.OutputPathError, match=r"(?s)Received: path=.*photographs"):
        EXPORTS[kind](net(), tmp_path / "photographs")
    assert (tmp_path / "photographs" / "one.png").exists()


# Killed processes.

BLOCKING_EXPORT = """
import importlib, pathlib, sys, time
import numpy as np, tensorflow as tf, tfkit
from tests.export.test_signature import net
kind, place, path, flag = sys.argv[1:]

def block(*arguments, **options):
    pathlib.Path(flag).touch()
    time.sleep(600)

def data():
    yield np.ones((4, 6), "float32")
    block()

if place == "comparison":
    importlib.import_module("tfkit.export." + kind).compare = block
    getattr(tfkit, "export_" + kind)(net(), path)
else:
    inputs = tf.data.Dataset.from_generator(data, output_signature=tf.TensorSpec((4, 6)))
    tfkit.export_tflite(net(), path, precision="int8", representative_data=inputs)
"""
# kind of artifact, where the process is killed, whether an earlier artifact stands there
KILLS = [("tflite", "comparison", False), ("saved_model", "comparison", True), ("tflite", "data", True)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders in which an export was killed with SIGKILL; the processes run side by side."""
    folders, processes = [], []
    try:
        for kind, place, before in KILLS:
            folders.append(folder := tmp_path_factory.mktemp("killed"))
            if before:
                put_before(folder / "model", kind)
            command = [sys.executable, "-c", BLOCKING_EXPORT, kind, place, folder / "model", folder / "flag"]
            processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 120
        while not all((folder / "flag").exists() for folder in folders):
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return dict(zip(KILLS, folders, strict=True))


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_a_killed_export_leaves_the_name_as_it_was(killed, kill):
    kind, _, before = kill
    path = killed[kill] / "model"
    assert stands_before(path, kind) if before else not path.exists()


def test_after_a_kill_the_export_can_be_repeated(killed):
    artifact = tfkit.export_saved_model(net(), killed[KILLS[1]] / "model")
    assert artifact.parity.passed
