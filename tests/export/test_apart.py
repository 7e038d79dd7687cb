"""Artifacts in a process of their own: what they compute there, and every way in which they fail."""

import ast
import concurrent.futures
import os
import pathlib
import platform
import shutil
import subprocess
from subprocess import Popen

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests.export import sparse_files
from tests.export.test_signature import net, pair_net
from tfkit.export import apart, runners
from tfkit.export.apart import run_apart

RNG = np.random.default_rng(0)
X = RNG.random((5, 6), dtype="float32")
PICTURES = RNG.random((4, 32, 32, 3), dtype="float32")
emulated = pytest.mark.skipif(
    apart.has_avx() and apart.emulator() is None, reason="qemu-x86_64 is missing: install qemu-user"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name -> path of a `.tflite` file, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    good = tfkit.export_tflite(net(), folder / "good.tflite").path
    sparse, pooled = sparse_files.cluster(pooled=False), sparse_files.cluster(pooled=True)
    found = {
        "good": good,
        "sparse": sparse_files.write(sparse, folder / "sparse", ["EXPERIMENTAL_SPARSITY"]),
        "pooled": sparse_files.write(pooled, folder / "pooled", ["EXPERIMENTAL_SPARSITY"]),
        "sparse int8": sparse_files.write(sparse, folder / "s8", ["DEFAULT", "EXPERIMENTAL_SPARSITY"]),
        "endless": sparse_files.endless(folder / "endless"),
    }
    found["far"] = sparse_files.far_indices(found["sparse"], folder / "far")
    for name, change in {"cut": lambda b: b[:300], "garbled": lambda b: b[:8] + b[8:][::-1]}.items():
        found[name] = folder / name
        found[name].write_bytes(change(good.read_bytes()))
    return found


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


# What comes out.


@pytest.mark.parametrize("processor", ["this", pytest.param("no-avx", marks=emulated)])
def test_the_samples_outputs_are_stacked(files, processor):
    (got,) = run_apart(files["good"], [X], processor=processor)
    np.testing.assert_allclose(got, net()(X), atol=1e-6)


def test_without_samples_zeros_run(files):
    (got,) = run_apart(files["good"], None)
    np.testing.assert_allclose(got, net()(np.zeros((1, 6))), atol=1e-6)


@pytest.mark.parametrize("export", [tfkit.export_tflite, tfkit.export_saved_model])
def test_several_inputs_and_outputs_keep_their_order(tmp_path, export):
    x = [RNG.random((5, 2), dtype="float32"), RNG.random((5, 3), dtype="float32")]
    model = pair_net()
    for got, expected in zip(run_apart(export(model, tmp_path / "m").path, x), model(x), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_batch_that_the_samples_do_not_fill_is_filled_up(tmp_path):
    artifact = tfkit.export_tflite(net(), tmp_path / "m.tflite", batch_size=3)
    (got,) = run_apart(artifact.path, [X.astype("float64")])
    np.testing.assert_allclose(got, net()(X), atol=1e-6)


def test_outputs_in_bfloat16_are_compared(tmp_path):
    """NumPy's files have no such type."""
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2, dtype="bfloat16")(inputs))
    artifact = tfkit.export_saved_model(model, tmp_path / "m")
    (got,) = run_apart(artifact.path, [X])
    np.testing.assert_array_equal(got, np.asarray(model(X), "float32"))


def test_several_processes_with_one_and_two_threads_agree(files):
    model = sparse_files.cluster(pooled=False)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(run_apart, files["sparse"], [PICTURES], threads=n) for n in (1, 2, 1, 2)]
    for future in futures:
        assert relative_error(future.result()[0], model(PICTURES)) < 1e-5


@emulated
def test_max_pooling_among_sparse_kernels_is_wrong_only_without_avx(files):
    """The reason for the second processor: no error, no crash, another answer."""
    expected = np.asarray(sparse_files.cluster(pooled=True)(PICTURES))
    assert relative_error(run_apart(files["pooled"], [PICTURES], processor="no-avx")[0], expected) > 0.1
    if apart.has_avx():
        assert relative_error(run_apart(files["pooled"], [PICTURES])[0], expected) < 1e-5


@emulated
def test_sparse_kernels_without_pooling_are_right_without_avx(files):
    expected = np.asarray(sparse_files.cluster(pooled=False)(PICTURES))
    assert relative_error(run_apart(files["sparse"], [PICTURES], processor="no-avx")[0], expected) < 1e-5


# What goes wrong.


@pytest.mark.parametrize("processor", ["this", pytest.param("no-avx", marks=emulated)])
def test_a_crash_is_an_error_that_names_the_signal(files, processor):
    rule = r"(?s)must not crash its runtime.*Received: path=.*by SIGSEGV while running.*Export it again"
    with pytest.raises(tfkit.ExportError, match=rule) as caught:
        run_apart(files["far"], [PICTURES], processor=processor)
    assert ("without AVX" in str(caught.value)) == (processor == "no-avx" and apart.has_avx())


@pytest.mark.parametrize("name", ["cut", "garbled"])
def test_a_damaged_file_is_an_error(files, name):
    with pytest.raises(tfkit.ExportError, match=r"(?s)load the artifact.*Received: path=.*ValueError.*again"):
        run_apart(files[name], [X])


def test_an_error_of_the_runtime_is_told_in_its_words(files):
    rule = r"(?s)run the artifact.*Received: samples of shape \[\(32, 32, 3\)\].*failed to prepare"
    with pytest.raises(tfkit.ExportError, match=rule):
        run_apart(files["sparse int8"], [PICTURES])


@pytest.fixture
def started(monkeypatch):
    """The process groups that were started."""
    groups = []

    def start(*arguments, **options):
        groups.append(process := Popen(*arguments, **options))
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    return groups


def is_gone(process):
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return process.returncode == -9


def test_a_run_beyond_its_time_is_stopped(files, started):
    rule = r"(?s)within its time limit of 3 s.*Received: path=.*still running .*stopped.*Raise time_limit_s"
    with pytest.raises(tfkit.ExportError, match=rule):
        run_apart(files["endless"], [np.zeros((1, 3))], time_limit_s=3)
    assert is_gone(started[0])


def test_an_interrupted_run_is_stopped(files, started, monkeypatch):
    wait, calls = Popen.wait, []

    def interrupted(process, *limit):
        calls.append(limit)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(process, *limit)

    monkeypatch.setattr(Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_apart(files["endless"], [np.zeros((1, 3))])
    assert is_gone(started[0])


def test_other_inputs_are_refused(files):
    rule = r"shaped like its inputs.*Received: arrays of shape \[\(5, 3\)\] for inputs of shape \[\(1, 6\)\]"
    with pytest.raises(tfkit.ExportError, match=rule):
        run_apart(files["good"], [X[:, :3]])


REFUSED = {
    "processor": (
        {"processor": "arm"},
        r"`processor` must be one of this, no-avx.*Received: .*='arm'",
    ),
    "threads": ({"threads": 0}, r"`threads` must be at least 1.*Received: threads=0"),
    "time": ({"time_limit_s": 0}, r"`time_limit_s` must be above 0.*Received: time_limit_s=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(files, case):
    options, message = REFUSED[case]
    with pytest.raises(tfkit.ArgumentError, match=message):
        run_apart(files["good"], [X], **options)


def test_a_saved_model_without_avx_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(tfkit.ArgumentError, match=r"Only a \.tflite file.*Received: processor='no-avx'"):
        run_apart(tmp_path, [X], processor="no-avx")


def test_a_path_without_an_artifact_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"which is neither"):
        run_apart(tmp_path / "missing.tflite", [X])


# The callers.


def test_a_crash_is_an_error_of_check_parity(files):
    with pytest.raises(tfkit.ExportError, match="SIGSEGV"):
        tfkit.check_parity(sparse_files.cluster(pooled=False), files["far"], PICTURES)


@pytest.mark.parametrize(("name", "message"), [("far", "SIGSEGV"), ("cut", "load the artifact")])
def test_a_bad_file_is_an_error_of_benchmark(files, name, message):
    with pytest.raises(tfkit.ExportError, match=message):
        tfkit.benchmark([files["good"], files[name]], runs=1)


# The processor and the emulator.


@pytest.mark.parametrize(
    ("machine", "information", "expected"),
    [
        ("x86_64", "flags\t\t: fpu sse4_2 avx avx2", True),
        ("x86_64", "flags\t\t: fpu sse4_2", False),
        ("x86_64", "nothing of the kind", True),
        ("aarch64", "flags\t\t: avx", False),
    ],
)
def test_avx_is_read_from_the_system(monkeypatch, machine, information, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: information)
    assert apart.has_avx() is expected


def test_a_missing_emulator_is_named_with_its_package(files, monkeypatch):
    monkeypatch.setattr(apart, "has_avx", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    rule = r"qemu-x86_64, which this machine lacks.*qemu-user.*Received: processor='no-avx'"
    with pytest.raises(tfkit.ExportError, match=rule):
        run_apart(files["good"], [X], processor="no-avx")


def test_a_processor_without_avx_needs_no_emulator(files, monkeypatch):
    monkeypatch.setattr(apart, "has_avx", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (got,) = run_apart(files["good"], [X], processor="no-avx")
    np.testing.assert_allclose(got, net()(X), atol=1e-6)


def test_the_child_imports_nothing_but_numpy_and_a_runtime():
    tree = ast.walk(ast.parse(pathlib.Path(runners.__file__).read_text()))
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    standard = {"collections", "contextlib", "json", "os", "pathlib", "sys", "time", "typing"}
    assert names == standard | {"ai_edge_litert", "numpy", "tensorflow"}
