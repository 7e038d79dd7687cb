"""`tfkit export`, `bench` and `inspect` on files, good and bad."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest

import tfkit
from tests.cli_calls import as_json, call, refusal, shell
from tests.export import sparse_files

RNG = np.random.default_rng(0)
SHAPE = (8, 8, 3)
TITLES = ["target", "runtime", "file", "MB", "MB gzip", "off by", "ms here", "times as fast"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with models, artifacts of them, data, and broken ones."""
    folder = tmp_path_factory.mktemp("files")
    model = tfkit.models.build_encoder_decoder(SHAPE, filters=(4,), output_channels=3)
    model.save(folder / "model.keras")
    tfkit.models.build_encoder_decoder((None, None, 3), filters=(4,), output_channels=3).save(
        folder / "open.keras"
    )
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: 2 * x)(inputs)).save(folder / "code.keras")
    (folder / "torn.keras").write_bytes((folder / "model.keras").read_bytes()[:500])
    tfkit.export_tflite(model, folder / "model.tflite")
    tfkit.export_saved_model(model, folder / "server")
    good = (folder / "model.tflite").read_bytes()
    (folder / "torn.tflite").write_bytes(good[:300])
    (folder / "text.tflite").write_text("no model at all")
    np.save(folder / "x.npy", RNG.random((6, *SHAPE), dtype="float32"))
    np.save(folder / "narrow.npy", RNG.random((6, 4, 4, 3), dtype="float32"))
    return folder


# Export.


@pytest.fixture(scope="module")
def exported(files):
    return call(
        "export", files / "model.keras", files / "out", "--targets", "mobile", "--data", files / "x.npy"
    )


def test_export_prints_what_was_read_the_whole_table_and_the_page(files, exported):
    assert exported.exit_code == 0, exported.output
    first, head, row, *rest = exported.stdout.splitlines()
    assert first == f"Read 6 samples of 8x8x3 from {files / 'x.npy'}."
    assert head.split() == [
        "target",
        "runtime",
        "file",
        "MB",
        "MB",
        "gzip",
        "off",
        "by",
        "ms",
        "here",
        "times",
        "as",
        "fast",
    ]
    assert row.split()[:3] == ["mobile", "LiteRT", "model-int8.tflite"]
    assert "..." not in exported.stdout
    assert rest[-1] == f"The report is {files / 'out' / 'report.html'}"
    assert (files / "out" / "report.html").is_file()


def test_export_says_why_and_where_it_is_proven(exported):
    words = " ".join(exported.stdout.split())
    assert "mobile, LiteRT: the fastest dense form on ARM and in wasm. Proven on LiteRT" in words


def test_export_does_not_replace_unasked(files, exported):
    words = ["export", files / "model.keras", files / "out", "--targets", "gpu", "--runs", 0]
    assert "Pass --overwrite or choose another place" in refusal(call(*words), 2)
    found = as_json(call(*words, "--overwrite", "--json"))
    assert [row["target"] for row in found["targets"]] == ["gpu", "gpu"]
    assert found["page"] == str(files / "out" / "report.html")
    assert pathlib.Path(found["directory"], "manifest.json").is_file()


def test_export_leaves_other_folders_alone(files, tmp_path):
    (tmp_path / "mine.txt").touch()
    said = refusal(call("export", files / "model.keras", tmp_path), 2)
    assert "holds something else" in said
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_json_of_an_export_in_a_shell_is_all_that_is_printed(files, tmp_path):
    done = shell(
        "export", files / "open.keras", tmp_path / "out", "--targets", "desktop", "--runs", 0, "--json",
        "--input-shape", "8,8,3", "--batch-size", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["name"] == "encoder_decoder"
    (device,) = [each for each in json.loads(done.stdout)["targets"] if each["runtime"] == "LiteRT"]
    table = tfkit.explain_tflite(tmp_path / "out" / device["file"])
    assert table.attrs["inputs"] == ["2x8x8x3 FLOAT32"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["narrow.npy"], "shaped like the model's inputs.*\\(4, 4, 3\\)"),
        (["model.keras"], "`--data` must be a .npy or .npz file"),
        (["server"], "must hold pictures"),
    ],
)
def test_data_that_does_not_fit_is_a_wrong_call(files, tmp_path, words, message):
    done = call("export", files / "model.keras", tmp_path / "out", "--data", files / words[0])
    assert done.exit_code == 2
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["export", "inspect"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "code.keras",
            "Lambda layer runs code.*Load it in Python .* with safe_mode=False if",
        ),
        ("torn.keras", "whole .keras"),
        ("x.npy", "a .keras "),
    ],
)
def test_a_model_that_must_not_or_cannot_be_loaded_is_a_wrong_call(files, tmp_path, command, name, message):
    done = call(command, files / name, *([tmp_path / "out"] if command == "export" else []))
    assert re.search(message, refusal(done, 2))


def test_a_wrong_target_names_the_nearest(files, tmp_path):
    done = call("export", files / "model.keras", tmp_path / "out", "--targets", "mobil")
    assert done.exit_code == 2
    assert "'mobil' is no target. Did you mean mobile?" in done.stderr


@pytest.mark.parametrize("words", [["export", "none.keras", "out"], ["bench", "none"], ["inspect", "none"]])
def test_a_file_that_is_not_there_is_a_wrong_call(words):
    done = call(*words)
    assert done.exit_code == 2
    assert "does not exist" in done.stderr


# Bench.


def test_bench_prints_a_row_for_each_file(files, tmp_path):
    paths = [files / "model.tflite", files / "server"]
    done = call("bench", *paths, "--runs", 2, "--data", files / "x.npy", "--plot", tmp_path / "p.png")
    assert done.exit_code == 0, done.output
    head, *rows = done.stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["model.tflite", "tflite"], ["server", "saved_model"]]
    assert "MB memory" in head
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"


def test_bench_gives_json_with_all_columns(files):
    (row,) = as_json(call("bench", files / "model.tflite", "--runs", 1, "--threads", 2, "--json"))
    assert row["threads"] == 2
    assert row["size_bytes"] == (files / "model.tflite").stat().st_size
    assert row["memory_bytes"] > 0
    assert row["latency_ms"] > 0


def test_files_of_one_name_are_told_apart(files, tmp_path):
    other = tmp_path / "model.tflite"
    other.write_bytes((files / "model.tflite").read_bytes())
    rows = as_json(call("bench", files / "model.tflite", other, "--runs", 1, "--json"))
    assert [row["name"] for row in rows] == [str(files / "model.tflite"), str(other)]


@pytest.mark.parametrize("command", ["bench", "inspect"])
@pytest.mark.parametrize(("name", "code"), [("torn.tflite", 1), ("text.tflite", 2)])
def test_a_broken_file_is_an_error(files, command, name, code):
    assert name in refusal(call(command, files / name), code)


def test_bench_on_data_of_another_shape_fails(files):
    done = call("bench", files / "model.tflite", "--data", files / "narrow.npy")
    assert "arrays of shape [(1, 4, 4, 3)]" in refusal(done, 1)


# Inspect.


def test_inspect_prints_layers_work_and_targets(files):
    done = call("inspect", files / "model.keras")
    assert done.exit_code == 0, done.output
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["path", "class", "trainable", "parameters", "sparsity", "dtype", "flops"]
    assert lines[0].split()[:2] == ["encoder_conv1", "Conv2D"]
    words = " ".join(done.stdout.split())
    assert "multiplications and additions a sample." in words
    assert "XNNPACK has no sparse kernels for x86 with AVX" in words
    assert "mobile, web: dense" in words


def test_inspect_gives_json(tmp_path):
    model = sparse_files.cluster(pooled=False)
    model.save(tmp_path / "model.keras")
    found = as_json(call("inspect", tmp_path / "model.keras", "--json"))
    assert found["parameters"] == model.count_params()
    # 2 * positions * kernel * channels in * channels out, of the stem, the two 1x1 and the depthwise one
    work = [16 * 16 * 27 * 16, 16 * 16 * 16 * 32, 16 * 16 * 9 * 32, 16 * 16 * 32 * 32]
    assert [row["flops"] for row in found["layers"]] == [2 * each for each in work]
    assert found["flops"] == 2 * sum(work)
    kernels = [np.asarray(each) for each in model.weights]
    zeros = sum((each == 0).sum() for each in kernels if each.ndim > 1)
    total = sum(each.size for each in kernels if each.ndim > 1)
    assert found["sparsity"] == pytest.approx(zeros / total)
    assert [each["verdict"] for each in found["targets"].values()] == ["dense", "gpu", "sparse", "sparse"]


def test_inspect_tells_the_remedy(tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = keras.layers.Conv2D(8, 1)(x)
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)).save(tmp_path / "model.keras")
    found = as_json(call("inspect", tmp_path / "model.keras", "--json"))["targets"]["mobile"]
    assert found["remedy"] == "tfkit.make_sparse_ready(model)"
    assert "a stem padded by" in found["reason"]


def test_inspect_says_what_open_sizes_leave_unknown(files):
    found = as_json(call("inspect", files / "open.keras", "--json"))
    assert found["flops"] is None
    assert {each["verdict"] for each in found["targets"].values()} == {None}
    assert "Pass --input-shape height,width,channels." in found["notes"][0]


def test_inspect_with_sizes_knows_all(files):
    found = as_json(call("inspect", files / "open.keras", "--json", "--input-shape", "8,8,3"))
    fixed = as_json(call("inspect", files / "model.keras", "--json"))
    assert found["flops"] == fixed["flops"]
    assert found["targets"] == fixed["targets"]


def test_inspect_reads_a_tflite_file(files):
    done = call("inspect", files / "model.tflite")
    assert done.exit_code == 0, done.output
    assert "CONV_2D" in done.stdout
    assert "takes 1x8x8x3 FLOAT32, not sparse-encoded." in " ".join(done.stdout.split())


def test_inspect_knows_a_sparse_file(tmp_path):
    for pooled, verdict in ((False, "sparse"), (True, "wrong")):
        path = tmp_path / f"{verdict}.tflite"
        sparse_files.write(sparse_files.cluster(pooled=pooled), path, ["EXPERIMENTAL_SPARSITY"])
        found = as_json(call("inspect", path, "--json"))
        assert found["sparse"]
        assert found["verdict"] == verdict


def test_a_tflite_file_takes_no_shape(files):
    assert "has its own sizes" in refusal(call("inspect", files / "model.tflite", "--input-shape", "8"), 2)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model that computes in Python, so that nobody knows its graph."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_a_model_without_a_graph_is_inspected_as_far_as_it_can_be(tmp_path):
    model = Subclassed()
    model(np.zeros((1, 3)))
    model.save(tmp_path / "model.keras")
    found = as_json(call("inspect", tmp_path / "model.keras", "--json"))
    assert found["parameters"] == 8
    assert found["flops"] is None
    assert {each["verdict"] for each in found["targets"].values()} == {None}
