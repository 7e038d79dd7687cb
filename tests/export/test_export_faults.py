"""What an export refuses, and what is left on the disk when it fails, fills up or is killed."""

import errno
import importlib
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tests.export.sparse_files import cluster, far_indices, write
from tests.export.target_nets import X, eligible_net, export, never_net
from tfkit import files
from tfkit.export.signature import input_specs, require_range

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def module_of(name):
    return importlib.import_module(f"tfkit.export.{name}")


def scaled_net(scale=1 / 255, nested=False):
    """Pixels from 0 to 255 in, scaled inside."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(scale)(inputs)
    if nested:
        inner = keras.Input((8, 8, 3))
        x = keras.Model(inner, layers.Rescaling(scale)(inner), name="scaling")(inputs)
    outputs = layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 3)(x)))
    return keras.Model(inputs, outputs, name="scaled")


def nan_net():
    model = never_net()
    kernel = model.get_layer("second").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    return model


@pytest.fixture
def nothing_is_made(monkeypatch):
    """Fails the test when a candidate is made; pytest's Failed is no Exception that could be caught."""
    maker = module_of("candidates").Maker
    monkeypatch.setattr(maker, "_make", lambda *arguments: pytest.fail("a candidate was made"))


# What is refused before anything is made.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("tv",)}, r"target must be one of desktop, gpu, mobile, web. Received: 'tv'"),
        ({"targets": None}, r"`targets` must name at least one of desktop.*Received: None"),
        ({"largest_drop": "1%"}, r"`largest_drop` must lie in \[0, 1\). Received: largest_drop='1%'"),
        ({"representative_data": X * 0}, r"must vary.*Received: representative_data of nothing but 0"),
        ({"targets": ()}, r"`targets` must name at least one of desktop.*Received: \(\)"),
        ({"largest_drop": 1.0}, r"`largest_drop` must lie in \[0, 1\). Received: largest_drop=1.0"),
        ({"runs": -1}, r"`runs` must be a whole number from 0. Received: runs=-1"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1, or None. Received: batch_size=0"),
        ({"targets": "web", "batch_size": None}, r"fixed sizes only. Received: .*\('web',\), inputs .*None"),
        ({"representative_data": X[:0]}, r"at least one sample.*Received: .*\[0\] samples"),
        (
            {"representative_data": X[:, :16]},
            r"shaped like the model's inputs.*\[8\] samples of shape \[\(16, 32, 3\)\]; .*\[\(32, 32, 3\)\]",
        ),
        (
            {"representative_data": X * np.inf},
            r"must hold finite numbers.* from (nan to nan|inf to inf)\.",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_arguments_are_refused_before_anything_is_made(tmp_path, nothing_is_made, options, message):
    with pytest.raises(tfkit.ArgumentError, match=message):
        tfkit.export(never_net(), tmp_path / "out", verbose=0, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nan_net, {}, tfkit.NonFiniteWeightsError, r"second"),
        (never_net, {"baseline": nan_net()}, tfkit.NonFiniteWeightsError, r"second"),
        (never_net, {"baseline": "model.keras"}, tfkit.ArgumentTypeError, r"model\.keras"),
        (never_net, {"evaluate": 0.9}, tfkit.ArgumentTypeError, r"must be a function. Rec.*evaluate=0.9"),
        (models.subclassed_net, {}, tfkit.UnbuiltModelError, r"subclassed.*Wrap it: keras.Model"),
        (lambda: 3, {}, tfkit.ArgumentTypeError, r"Received: model=3"),
    ],
    ids=["NaN", "NaN baseline", "no baseline", "no function", "subclassed", "no model"],
)
def test_models_and_judges_are_refused_before_anything_is_made(
    tmp_path, nothing_is_made, model, options, error, message
):
    with pytest.raises(error, match=message):
        tfkit.export(model(), tmp_path / "out", verbose=0, **options)
    assert list(tmp_path.iterdir()) == []


def test_int8_alone_asks_for_data(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"int8 needs `representative_data`.*about 100 inputs"):
        tfkit.export_tflite(never_net(), tmp_path / "model.tflite", precision="int8")


@pytest.mark.parametrize("answer", ["good", None, [1, 2]], ids=str)
def test_a_judge_that_gives_no_number_is_refused(tmp_path, answer):
    with pytest.raises(tfkit.ArgumentError, match=r"`evaluate` must return a number.*Received: "):
        export(never_net(), tmp_path, "mobile", evaluate=lambda predict: answer)
    assert list(tmp_path.iterdir()) == []


def test_a_judge_that_is_not_content_with_keras_itself_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"`evaluate` must return a number.*Received: nan"):
        export(never_net(), tmp_path, "mobile", evaluate=lambda predict: float("nan"))


# require_range.


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 60_000)])
def test_data_of_another_range_are_refused_and_both_ranges_named(low, high, nested):
    data = np.linspace(low, high, 192, dtype="float32").reshape(1, 8, 8, 3)
    with pytest.raises(
        tfkit.ArgumentError,
        match=rf"Received: representative_data from {low} to {high}; .*Rescaling by 0.003922.*about 255\.",
    ):
        require_range(scaled_net(nested=nested), [data])


@pytest.mark.parametrize(
    ("scale", "low", "high"), [(1 / 255, 0, 255), (1 / 255, 0, 20), (1 / 127.5, 0, 255), (1.0, 0, 1)]
)
def test_data_of_the_models_range_are_taken(scale, low, high):
    data = np.linspace(low, high, 192, dtype="float32").reshape(1, 8, 8, 3)
    require_range(scaled_net(scale), [data])


def test_data_of_one_value_tell_no_range():
    require_range(scaled_net(), [np.zeros((2, 8, 8, 3), "float32")])


def test_a_model_without_scaling_takes_any_range():
    require_range(never_net(), [X * 1e6])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(value):
    data = X.copy()
    data[3, 2, 1, 0] = value
    with pytest.raises(tfkit.ArgumentError, match=r"finite numbers. Received: x from .*Clean"):
        require_range(never_net(), [data], name="x")


def test_export_checks_the_range(tmp_path, nothing_is_made):
    data = RNG.random((4, 8, 8, 3))
    with pytest.raises(tfkit.ArgumentError, match=r"from \S+ to \S+; the model begins with a Rescaling"):
        tfkit.export(scaled_net(), tmp_path / "out", representative_data=data, verbose=0)


# Where it is written.


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A folder that an export has written, to be copied."""
    return export(models.dense_net(), tmp_path_factory.mktemp("earlier"), "mobile").directory


def copied(folder, target):
    subprocess.run(["cp", "-r", folder, target], check=True)
    return target


def test_an_earlier_export_is_kept_unless_it_may_be_replaced(tmp_path, earlier, nothing_is_made):
    out = copied(earlier, tmp_path / "out")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(tfkit.OutputPathError, match=r"only if.*Received: directory=.*overwrite=True"):
        tfkit.export(never_net(), out, verbose=0)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_an_earlier_export_is_replaced_on_request(tmp_path, earlier):
    out = copied(earlier, tmp_path / "out")
    report = export(never_net(), tmp_path, ("gpu",), overwrite=True)
    names = {"manifest.json", "report.html", "saved_model", "model-float16.tflite"}
    assert {path.name for path in out.iterdir()} == names
    assert report.manifest["model"]["name"] == "never"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["photograph.png", "manifest.json"])
def test_a_folder_of_other_files_is_never_replaced(tmp_path, name, nothing_is_made):
    """Web pages have a manifest.json, too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"name": "a page"}')
    with pytest.raises(tfkit.OutputPathError, match=rf"an earlier one, nothing else.*something else: {name}"):
        tfkit.export(never_net(), tmp_path / "out", overwrite=True, verbose=0)
    assert (tmp_path / "out" / name).exists()


def test_a_file_added_to_an_earlier_export_is_never_deleted(tmp_path, earlier, nothing_is_made):
    out = copied(earlier, tmp_path / "out")
    (out / "notes.txt").touch()
    with pytest.raises(tfkit.OutputPathError, match=r"something else: notes.txt"):
        tfkit.export(never_net(), out, overwrite=True, verbose=0)
    assert (out / "notes.txt").exists()


def test_a_file_is_never_replaced_by_a_folder(tmp_path, nothing_is_made):
    (tmp_path / "out").write_text("before")
    with pytest.raises(tfkit.OutputPathError, match=r"nothing else.*Received: directory="):
        tfkit.export(never_net(), tmp_path / "out", overwrite=True, verbose=0)
    assert (tmp_path / "out").read_text() == "before"


def test_an_empty_folder_is_filled(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    report = tfkit.export(models.dense_net(), ".", targets="mobile", runs=0, verbose=0)
    assert report.directory == tmp_path / "out"
    assert report.path("mobile").is_file()


def test_a_place_below_a_file_is_refused(tmp_path, nothing_is_made):
    (tmp_path / "file").touch()
    with pytest.raises(tfkit.OutputPathError, match=r"can be written to. Received: directory=.*file/out"):
        tfkit.export(never_net(), tmp_path / "file" / "out", verbose=0)


def test_a_parent_that_cannot_be_written_to_is_refused(tmp_path, nothing_is_made, monkeypatch):
    """Root may write anywhere, so the system's answer is feigned."""

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(tfkit.OutputPathError, match=r"Received: directory=.*Permission denied.*Choose"):
        tfkit.export(never_net(), tmp_path / "out", verbose=0)


# Failures in the middle.


@pytest.mark.parametrize("place", ["a candidate", "the manifest"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, place):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "a candidate":
        monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    else:
        monkeypatch.setattr(module_of("targets"), "write_manifest", full)
    with pytest.raises(tfkit.OutputPathError, match=r"must have room.*Received: path='\S+/out' \(No space"):
        export(models.dense_net(), tmp_path, "mobile")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 kB, which only root can mount; else there is none."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", place]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root mounts a disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


WRITERS = {
    "saved_model": lambda model, folder: tfkit.export_saved_model(model, folder / "out"),
    "tflite": lambda model, folder: tfkit.export_tflite(model, folder / "out"),
    "export": lambda model, folder: export(model, folder, ("gpu", "mobile")),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_is_really_full_is_told(small_disk, kind):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8000), layers.Dense(2)])
    (small_disk / "before").write_text("before")
    with pytest.raises(tfkit.OutputPathError, match=r"must have room.*Received: path='\S+/disk/out'.*No spa"):
        WRITERS[kind](model, small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["before"]


def test_a_file_that_crashes_its_runtime_is_passed_over(tmp_path, monkeypatch):
    """Its indices point far outside, on which LiteRT ends with a signal."""
    module = module_of("candidates")
    sparse = write(cluster(False), tmp_path / "sparse", ["EXPERIMENTAL_SPARSITY"])
    broken = far_indices(sparse, tmp_path / "broken").read_bytes()
    monkeypatch.setattr(module, "convert_model", lambda *arguments, **options: broken)
    report = export(eligible_net(), tmp_path, "mobile")
    assert report.path("mobile").name == "model-float16.tflite"
    assert "not sparse-float16: An artifact must not crash its runtime" in report.rows[0]["reason"]


def test_an_operation_that_cannot_be_converted_is_named_by_its_layer(tmp_path):
    class Decompose(layers.Layer):
        def call(self, x):
            return keras.ops.svd(x)[1]

        def compute_output_shape(self, shape):
            return shape[:-1]

    inner = keras.Input((4, 4))
    block = keras.Model(inner, Decompose(name="decompose")(inner), name="block")
    inputs = keras.Input((4, 4))
    model = keras.Model(inputs, layers.Dense(2)(block(inputs)), name="net")
    with pytest.raises(
        tfkit.ExportError,
        match=r"(?s)must pass for every target. Received: model='net', target='mobile'. Tried were on LiteRT "
        r"int8: no repr.*; float16: .*TFLite lacks Svd at 'block/decompose'",
    ):
        export(model, tmp_path, "mobile")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import importlib, pathlib, sys, time
import tfkit
from tests import models
out, flag = sys.argv[1:]

def block(*arguments, **options):
    pathlib.Path(flag).touch()
    time.sleep(600)

importlib.import_module("tfkit.export.targets").write_manifest = block
tfkit.export(models.dense_net(), out, targets="mobile", runs=0, verbose=0, overwrite=True)
"""


def test_a_kill_leaves_what_stood_there_and_the_next_run_cleans_up(tmp_path, earlier):
    out = copied(earlier, tmp_path / "out")
    flag = tmp_path / "flag"
    process = subprocess.Popen([sys.executable, "-c", KILLED, out, flag], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not flag.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = tfkit.ExportReport.load(out)
    assert before.path("mobile").is_file()
    assert list(tmp_path.glob(".out.*.partial"))
    report = export(models.dense_net(), tmp_path, "mobile", overwrite=True)
    assert report.manifest["targets"][0]["file"] == before.rows[0]["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flag", "out"]


def test_input_specs_refuse_a_batch_below_one():
    with pytest.raises(tfkit.ArgumentError, match=r"at least 1, or None. Received: batch_size=-1"):
        input_specs(never_net(), batch_size=-1)
