"""What LiteRT.js computes in a real Chromium, and what is said when it cannot.

These tests need Chromium and `npm install`; without them they fail, and the message says what is missing.
"""

import os
import pathlib
import re
import uuid

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tfkit.export.browser import run_in_browser, time_in_browser
from tfkit.export.webtools import Browser, find_browser
from tfkit.litert import convert, trace

RNG = np.random.default_rng(0)
X = RNG.random((3, 8, 8, 3)).astype("float32")
ROW = tf.TensorSpec((1, 4), tf.float32)
ONES = np.ones((2, 4), "float32")


def export(model, folder, **options):
    return tfkit.export_tflite(model, folder / f"{model.name}.tflite", **options).path


def write(function, folder, *specs, **options):
    """Writes a function as a `.tflite` file that nothing has run yet."""

    def configure(converter):
        for name, value in options.items():
            setattr(converter, name, value)

    path = folder / f"{uuid.uuid4()}.tflite"
    path.write_bytes(convert({"serve": trace(function, specs)}, configure))
    return path


def sparse_net(folder):
    """1×1 convolutions of which 85% are zero, sparse-encoded; returns the model and its file."""
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(32, 1, activation="relu", name=name) for name in ("conv1", "conv2")]
    model = keras.Sequential([keras.Input((8, 8, 16)), *stack, layers.Flatten(), layers.Dense(3)])
    for layer in stack:
        kernel, bias = layer.get_weights()
        layer.set_weights([np.where(RNG.random(kernel.shape) < 0.85, 0, kernel), bias])
    spec = tf.TensorSpec((1, 8, 8, 16), tf.float32)
    path = write(
        lambda x: [model(x, training=False)],
        folder,
        spec,
        optimizations=[tf.lite.Optimize.EXPERIMENTAL_SPARSITY],
    )
    return model, path


def many_net():
    """Three inputs, one of integers, and eleven outputs, all told apart by shape or value."""
    a, b = keras.Input((4,), name="z"), keras.Input((2, 3), name="y")
    c = keras.Input((4,), name="x", dtype="int32")
    sums = layers.Add()([a, layers.Rescaling(1.0)(c)])
    outputs = [layers.Rescaling(float(number))(sums) for number in range(1, 11)]
    return keras.Model([a, b, c], [*outputs, layers.Rescaling(2.0)(b)], name="many")


def fake_package(folder, script):
    """A package that does what `script` says in place of LiteRT.js."""
    for name, text in (("core", script), ("wasm-utils", "")):
        (folder / name / "dist").mkdir(parents=True)
        (folder / name / "dist" / "index.js").write_text(text)
    return Browser(find_browser().program, folder / "core")


def fake_program(folder, script):
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def session(number):
    """The processes that still run in a session."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, leader = stat.read_text().rpartition(") ")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(leader) == number and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.fixture(scope="module")
def conv_path(tmp_path_factory):
    return export(models.conv_net(), tmp_path_factory.mktemp("conv"))


def test_a_running_session_is_seen():
    """Without which an empty one would prove nothing."""
    assert str(os.getpid()) in session(os.getsid(0))


# What it computes.


@pytest.mark.parametrize("accelerator", ["wasm", "webgpu"])
@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-6), ("float16", 1e-3)])
def test_the_outputs_are_those_of_keras(precision, error, accelerator, tmp_path):
    model = models.conv_net()
    path = export(model, tmp_path, precision=precision)
    run = run_in_browser(path, [X], accelerator=accelerator)
    (output,) = run.outputs
    np.testing.assert_allclose(output, model.predict(X, verbose=0), atol=error)
    assert output.dtype == "float32"
    assert run.accelerated == (accelerator == "webgpu")
    assert run.milliseconds == ()


@pytest.mark.parametrize("accelerator", ["wasm", "webgpu"])
def test_several_inputs_and_outputs_keep_the_models_order(accelerator, tmp_path):
    model = many_net()
    arrays = [RNG.random((2, 4)), RNG.random((2, 2, 3)), RNG.integers(0, 9, (2, 4))]
    run = run_in_browser(export(model, tmp_path), arrays, accelerator=accelerator)
    expected = [number * (arrays[0] + arrays[2]) for number in range(1, 11)] + [2 * arrays[1]]
    assert len(run.outputs) == len(expected)
    for output, want in zip(run.outputs, expected, strict=True):
        np.testing.assert_allclose(output, want, rtol=1e-6)


def test_samples_that_fill_no_whole_batch_are_padded_and_cut_back(tmp_path):
    model = models.dense_net()
    x = RNG.random((5, 6)).astype("float32")
    (output,) = run_in_browser(export(model, tmp_path, batch_size=2), [x]).outputs
    np.testing.assert_allclose(output, model.predict(x, verbose=0), atol=1e-6)


def test_integer_outputs_keep_their_type(tmp_path):
    path = write(lambda a: [tf.argmax(a, 1, tf.int32)], tmp_path, ROW)
    (output,) = run_in_browser(path, [np.eye(4)]).outputs
    np.testing.assert_array_equal(output, np.arange(4, dtype="int32"), strict=True)


def test_a_sparse_model_on_webgpu_is_told_to_fall_back(tmp_path):
    model, path = sparse_net(tmp_path)
    x = RNG.random((2, 8, 8, 16)).astype("float32")
    run = run_in_browser(path, [x], accelerator="webgpu")
    assert not run.accelerated
    assert "DENSIFY: Operation is not supported" in run.log
    assert "warn: [LiteRT] Model not fully compiled for webgpu" in run.log
    np.testing.assert_allclose(run.outputs[0], model.predict(x, verbose=0), atol=1e-6)


# How long it takes.


def test_timed_runs_are_told_one_by_one(conv_path):
    times = run_in_browser(conv_path, [X], runs=7).milliseconds
    assert len(times) == 7
    assert all(0 <= each < 1000 for each in times)
    assert max(times) > 0


def test_files_are_timed_by_name_and_a_larger_one_takes_longer(tmp_path):
    inputs = keras.Input((32, 32, 3))
    wide = layers.Conv2D(64, 3, activation="relu")(layers.Conv2D(64, 3, activation="relu")(inputs))
    large = export(keras.Model(inputs, wide, name="large"), tmp_path)
    small = export(models.dense_net(), tmp_path)
    times = time_in_browser({"large": large, "small": small}, runs=9)
    assert [(name, len(each)) for name, each in times.items()] == [("large", 9), ("small", 9)]
    assert np.median(times["large"]) > np.median(times["small"])


def test_files_are_timed_on_webgpu(conv_path):
    assert len(time_in_browser({"one": conv_path}, accelerator="webgpu", runs=2)["one"]) == 2


def test_files_run_in_turn_round_by_round(conv_path, tmp_path):
    browser = fake_package(
        tmp_path,
        """
        let compiled = 0, calls = "";
        export class Tensor {}
        export const loadLiteRt = async () => {}, getWebGpuDevice = () => null;
        export async function loadAndCompile() {
          const name = "ab"[compiled++];
          const run = async () => {
            calls += name;
            if (calls.length == 2 + 2 * (3 + 2)) throw new Error(`<${calls}>`);
            return {};
          };
          return {run, getInputDetails: () => [], getOutputDetails: () => [], options: {}};
        }
        """,
    )
    once_each, three_to_warm_up, two_that_count = "ab", "ababab", "abab"
    with pytest.raises(tfkit.ExportError, match=f"<{once_each}{three_to_warm_up}{two_that_count}>"):
        time_in_browser({"a": conv_path, "b": conv_path}, runs=2, browser=browser)


def test_no_time_is_told_of_a_file_that_falls_back(conv_path, tmp_path):
    _, path = sparse_net(tmp_path)
    with pytest.raises(
        tfkit.ExportError, match=r"run there as a whole.*Received: paths with sparse, .*without sparse"
    ):
        time_in_browser({"dense": conv_path, "sparse": path}, accelerator="webgpu", runs=1)


# What the model or its samples are refused for.


@pytest.mark.parametrize("arrays", [[X[:, :7]], [X, X], [X[..., 0]]], ids=["size", "one too many", "rank"])
def test_samples_that_do_not_fit_are_refused(conv_path, arrays):
    with pytest.raises(
        tfkit.ExportError, match=r"shaped like its inputs.*Received: arrays of shape .*\[\[1,8,8,3\]\]"
    ):
        run_in_browser(conv_path, arrays)


def test_an_open_batch_is_refused(tmp_path):
    path = write(lambda a: [a * 2], tmp_path, tf.TensorSpec((None, 4), tf.float32))
    with pytest.raises(tfkit.ExportError, match=r"sizes are fixed.*Received: .*\[\[-1,4\]\]"):
        run_in_browser(path, [ONES])


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"\1" * 200, "Failed to load model"), (bytes(200), "Aborted")],
    ids=["ones", "zeros"],
)
def test_a_file_that_is_no_model_does_not_compile(content, fault, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + content)
    with pytest.raises(
        tfkit.ExportError,
        match=r"(?s)able to compile the artifact.*Received: path='.*broken.tflite', accelerator='wasm' "
        rf"\({fault}.*dense float32",
    ):
        run_in_browser(path, [ONES])


@pytest.mark.parametrize("accelerator", ["wasm", "webgpu"])
def test_a_type_that_the_runtime_lacks_does_not_compile(accelerator, tmp_path):
    path = write(lambda a: [a > 0], tmp_path, ROW)
    with pytest.raises(tfkit.ExportError, match=r"compile the artifact.*\(Element type BOOL is not"):
        run_in_browser(path, [ONES], accelerator=accelerator)


@pytest.mark.parametrize(("accelerator", "stage"), [("wasm", "run"), ("webgpu", "compile")])
def test_an_unknown_op_is_refused_though_the_runtime_only_logs_it(accelerator, stage, tmp_path):
    """On the processor LiteRT.js returns stale memory as the output and raises nothing."""
    path = write(lambda a: [tf.math.erfinv(a * 0.5)], tmp_path, ROW, allow_custom_ops=True)
    with pytest.raises(tfkit.ExportError, match=rf"(?s)able to {stage} the artifact.*custom op: Erfinv"):
        run_in_browser(path, [ONES], accelerator=accelerator)


def test_a_shader_that_the_gpu_refuses_is_told_though_the_runtime_goes_on(tmp_path):
    """LiteRT.js 2.5.3 writes such a shader for an int8 LSTM, and calls the model accelerated."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 4)), layers.LSTM(6, unroll=True), layers.Dense(2)])
    x = RNG.random((4, 5, 4)).astype("float32")
    path = export(model, tmp_path, precision="int8", representative_data=x)
    with pytest.raises(tfkit.ExportError, match=r"(?s)able to run the artifact.*'webgpu' \(ERROR: .*WGSL"):
        run_in_browser(path, [x], accelerator="webgpu")


def test_the_file_at_fault_is_named(conv_path, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(200))
    with pytest.raises(tfkit.ExportError, match=r"Received: path='.*broken.tflite'"):
        time_in_browser({"good": conv_path, "bad": path}, runs=1)


# What the browser is at fault for.


def test_a_browser_that_is_missing_is_named(conv_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        tfkit.ExportError, match=r"needs Chromium and LiteRT.js. Received: browser=None. No browser is on"
    ):
        run_in_browser(conv_path, [X])


def test_a_package_that_is_missing_is_named(conv_path, monkeypatch, tmp_path):
    monkeypatch.setenv("TFKIT_LITERTJS", str(tmp_path))
    with pytest.raises(tfkit.ExportError, match=r"browser=None. No @litertjs/core .*npm install"):
        run_in_browser(conv_path, [X])


def test_a_package_that_does_not_load_is_refused(conv_path, tmp_path):
    browser = fake_package(tmp_path, "throw new Error('half a package');")
    with pytest.raises(
        tfkit.ExportError,
        match=r"LiteRT.js must load.*package='.*core' \(half a package\).*npm inst",
    ):
        run_in_browser(conv_path, [X], browser=browser)


def test_a_program_that_does_not_start_is_refused(conv_path, tmp_path):
    program = tmp_path / "program"
    program.write_text("no program")
    browser = Browser(program, find_browser().package)
    with pytest.raises(tfkit.ExportError, match=r"program that starts. Received: program='.*' \(.*Inst"):
        run_in_browser(conv_path, [X], browser=browser)


def test_a_browser_that_ends_is_told_with_its_last_words(conv_path, tmp_path):
    browser = Browser(fake_program(tmp_path, "echo no display >&2; exit 3"), find_browser().package)
    with pytest.raises(
        tfkit.ExportError, match=r"until its page has answered.*ended with code 3 \(no display\)"
    ):
        run_in_browser(conv_path, [X], browser=browser)


def test_a_page_that_crashes_is_told(conv_path, tmp_path):
    """A page that fills its memory, of which it has 64 MB, is killed by V8."""
    fake = fake_package(
        tmp_path, "console.warn('filling'); const all = []; for (;;) all.push(new Array(9999).fill(0.5));"
    )
    program = fake_program(tmp_path, f'exec {fake.program} --js-flags=--max-old-space-size=64 "$@"')
    with pytest.raises(
        tfkit.ExportError, match=r"(?s)page must live.*on which it crashed.*says: warn: filling.*more memory"
    ):
        run_in_browser(conv_path, [X], browser=Browser(program, fake.package))


def test_a_page_that_takes_too_long_is_told_and_nothing_is_left_running(conv_path, tmp_path):
    fake = fake_package(tmp_path, "console.warn('round and round'); for (;;);")
    program = fake_program(tmp_path, f'echo $$ > {tmp_path}/pid; exec {fake.program} "$@"')
    with pytest.raises(
        tfkit.ExportError,
        match=r"(?s)within the time limit. Received: time_limit_s=8; its console says: warn: round and",
    ):
        run_in_browser(conv_path, [X], time_limit_s=8, browser=Browser(program, fake.package))
    assert session(int((tmp_path / "pid").read_text())) == []


def test_nothing_is_left_running_after_a_run(conv_path, tmp_path):
    found = find_browser()
    program = fake_program(tmp_path, f'echo $$ > {tmp_path}/pid; exec {found.program} "$@"')
    run_in_browser(conv_path, [X], accelerator="webgpu", browser=Browser(program, found.package))
    assert session(int((tmp_path / "pid").read_text())) == []


# Arguments, refused before anything starts.


@pytest.mark.parametrize(
    "arrays",
    [[], [np.float32(1)], [X[:0]], [X, X[:2]], [np.array(["a"])]],
    ids=["none", "number", "empty", "lengths", "text"],
)
def test_arrays_that_hold_no_samples_are_refused(conv_path, arrays):
    with pytest.raises(tfkit.ArgumentError, match=r"`arrays` must hold one array of.*Received: arrays"):
        run_in_browser(conv_path, arrays)


def test_an_unknown_accelerator_is_refused(conv_path):
    with pytest.raises(tfkit.ArgumentError, match=r"one of wasm, webgpu. Received: accelerator='webgl'"):
        run_in_browser(conv_path, [X], accelerator="webgl")


@pytest.mark.parametrize(
    "options",
    [{"runs": -1}, {"runs": 1.5}, {"time_limit_s": 0}, {"time_limit_s": float("nan")}, {"time_limit_s": "1"}],
    ids=str,
)
def test_counts_and_times_out_of_range_are_refused(conv_path, options):
    ((name, value),) = options.items()
    with pytest.raises(tfkit.ArgumentError, match=re.escape(f"{name}={value!r}")):
        run_in_browser(conv_path, [X], **options)


@pytest.mark.parametrize("options", [{"paths": {}}, {"runs": 0}, {"runs": "9"}], ids=str)
def test_nothing_to_time_is_refused(conv_path, options):
    with pytest.raises(tfkit.ArgumentError, match=r"a file to time and a round.*Received: paths="):
        time_in_browser(**{"paths": {"one": conv_path}, **options})


def test_a_saved_model_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(tfkit.ArgumentError, match=r"runs .tflite files. Received: path=.*a SavedModel"):
        run_in_browser(tmp_path, [X])


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"An artifact is a .tflite file.*Received: path="):
        run_in_browser(tmp_path / "none.tflite", [X])
