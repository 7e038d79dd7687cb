"""The benchmark: its columns, its order of runs, and its arithmetic on a clock of our own."""

import gzip
import pathlib
import types

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

import tfkit
from tests.export.test_artifact import PARITY, module_of
from tests.export.test_signature import net, pair_net
from tfkit import litert
from tfkit.export.apart import ApartRun
from tfkit.export.runners import LiteRT
from tfkit.export.runtime import load_runner

COLUMNS = [
    "name",
    "kind",
    "precision",
    "latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "size_bytes",
    "gzip_bytes",
    "threads",
    "memory_bytes",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return [
        tfkit.export_tflite(net(), folder / "model.tflite", precision="float16"),
        tfkit.export_saved_model(net(), folder / "model"),
    ]


@pytest.fixture
def files(tmp_path):
    """Two files that look like artifacts; fake runners stand in for them."""
    paths = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    for path in paths:
        path.write_bytes(b"\0\0\0\0TFL3" + path.name.encode() * 50)
    return paths


class Bench:
    """Replaces runtime and clock: a run takes as long as `seconds` says."""

    def __init__(self, monkeypatch):
        self.now, self.calls, self.probes, self.threads = 0.0, [], [], []
        self.seconds = lambda name, number: 0.001
        self.memory = 4096
        module = module_of("benchmark")
        monkeypatch.setattr(module, "load_runner", self.load)
        monkeypatch.setattr(module, "measure_apart", self.probe)
        monkeypatch.setattr(litert, "time", types.SimpleNamespace(perf_counter=lambda: self.now))

    def probe(self, path, arrays, *, threads):
        self.probes.append((path.name, arrays, threads, len(self.calls)))
        return ApartRun([], self.memory)

    def load(self, path, *, threads=1):
        self.threads.append(threads)

        def run(arrays):
            number = sum(name == path.name for name, _ in self.calls)
            self.calls.append((path.name, arrays))
            self.now += self.seconds(path.name, number)
            return arrays

        run.zeros = lambda: [f"zeros of {path.name}"]
        run.sizes = lambda: [(None,)]
        return run

    @property
    def order(self):
        return "".join(name[0] for name, _ in self.calls)


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


# On real artifacts.


def test_the_table_has_a_row_for_each_artifact(exported):
    table = tfkit.benchmark(exported, runs=2)
    assert list(table.columns) == COLUMNS
    assert table[["name", "kind", "precision"]].values.tolist() == [
        ["model.tflite", "tflite", "float16"],
        ["model", "saved_model", "float32"],
    ]


def test_latencies_are_positive_and_ordered(exported):
    table = tfkit.benchmark(exported, runs=5)
    assert (table.latency_low_ms > 0).all()
    assert (table.latency_low_ms <= table.latency_ms).all()
    assert (table.latency_ms <= table.latency_high_ms).all()


def test_sizes_are_those_on_disk_and_after_gzip(exported):
    table = tfkit.benchmark(exported, runs=1)
    for artifact, row in zip(exported, table.itertuples(), strict=True):
        files = (
            [artifact.path]
            if artifact.path.is_file()
            else [p for p in artifact.path.rglob("*") if p.is_file()]
        )
        assert row.size_bytes == sum(each.stat().st_size for each in files)
        assert row.gzip_bytes == sum(len(gzip.compress(each.read_bytes(), 9)) for each in files)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_of_any_float_type_are_taken(exported, dtype):
    assert len(tfkit.benchmark(exported, runs=1, x=np.ones((1, 6), dtype))) == 2


def test_several_inputs_are_taken(tmp_path):
    artifact = tfkit.export_tflite(pair_net(), tmp_path / "model.tflite")
    assert (
        len(tfkit.benchmark([artifact], runs=1, x=[np.ones((1, 2), "float32"), np.ones((1, 3), "float32")]))
        == 1
    )


def test_without_inputs_open_sizes_become_one(tmp_path):
    inputs = keras.Input((None, None, 3))
    artifact = tfkit.export_saved_model(keras.Model(inputs, layers.ReLU()(inputs)), tmp_path / "model")
    assert len(tfkit.benchmark([artifact], runs=1)) == 1
    assert [each.shape for each in load_runner(artifact.path).zeros()] == [(1, 1, 1, 3)]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_inputs_are_cut_and_filled_up_to_a_files_batch(tmp_path, monkeypatch, count):
    artifact = tfkit.export_tflite(net(), tmp_path / "model.tflite", batch_size=4)
    run, given = LiteRT.__call__, []
    monkeypatch.setattr(LiteRT, "__call__", lambda self, arrays: given.append(arrays) or run(self, arrays))
    x = np.random.default_rng(0).random((count, 6), dtype="float32")
    tfkit.benchmark([artifact], runs=1, x=x)
    assert given
    for (array,) in given:
        np.testing.assert_array_equal(array, x[np.arange(4) % count], strict=True)


def test_threads_are_told_where_they_were_set(exported):
    table = tfkit.benchmark(exported, runs=1, threads=2)
    assert table.threads[0] == 2
    assert table.threads.isna().tolist() == [False, True]


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="only Linux tells")
def test_memory_grows_by_what_a_network_holds(tmp_path):
    """A dense layer of 8 MB: it is read, and its product needs next to nothing."""
    inputs = keras.Input((1024,))
    large = keras.Model(inputs, layers.Dense(2048)(inputs))
    models = {"large": large, "small": net()}
    artifacts = {
        name: tfkit.export_tflite(each, tmp_path / f"{name}.tflite") for name, each in models.items()
    }
    table = tfkit.benchmark(artifacts, runs=1).set_index("name")
    assert 4e6 < table.memory_bytes["large"] - table.memory_bytes["small"] < 60e6


def test_the_picture_is_written(exported, tmp_path):
    tfkit.benchmark(exported, runs=1, plot=tmp_path / "below" / "plot.png")
    assert (tmp_path / "below" / "plot.png").read_bytes()[1:4] == b"PNG"


# On fake runners.


def test_runs_are_interleaved(bench, files):
    tfkit.benchmark(files, runs=4)
    assert bench.order == "ab" * (3 + 4)


@pytest.mark.parametrize(("runs", "warmup"), [(1, 3), (30, 3), (50, 5), (100, 10)])
def test_a_tenth_of_the_rounds_and_at_least_three_warm_up(bench, files, runs, warmup):
    tfkit.benchmark(files[:1], runs=runs)
    assert len(bench.calls) == warmup + runs


def test_the_latency_is_the_median_in_milliseconds(bench, files):
    bench.seconds = lambda name, number: (number - 2) / 1000 * (1 if name[0] == "a" else 7)
    table = tfkit.benchmark(files, runs=11)  # after three rounds of warm-up 1, 2, … 11 ms
    assert table.latency_ms.tolist() == pytest.approx([6, 42])
    assert table.latency_low_ms.tolist() == pytest.approx([2, 14])
    assert table.latency_high_ms.tolist() == pytest.approx([10, 70])


def test_the_warm_up_does_not_count(bench, files):
    bench.seconds = lambda name, number: 9.0 if number < 3 else 0.002
    table = tfkit.benchmark(files, runs=5)
    assert table.latency_high_ms.tolist() == pytest.approx([2, 2])


def test_one_run_gives_one_latency(bench, files):
    table = tfkit.benchmark(files[:1], runs=1)
    assert table.iloc[0, 3:6].tolist() == pytest.approx([1, 1, 1])


def test_threads_reach_the_runtime(bench, files):
    tfkit.benchmark(files, runs=1, threads=2)
    assert bench.threads == [2, 2]


@pytest.mark.parametrize("x", [None, 7, [7, 8]], ids=str)
def test_each_artifact_runs_once_apart_before_any_is_timed(bench, files, x, monkeypatch):
    monkeypatch.setattr(module_of("benchmark"), "fitting", lambda run, arrays: arrays)
    tfkit.benchmark(files, runs=1, threads=2, x=x)
    arrays = [7] if x == 7 else x
    assert bench.probes == [("a.tflite", arrays, 2, 0), ("b.tflite", arrays, 2, 0)]


def test_without_inputs_each_artifact_runs_on_its_own_zeros(bench, files):
    tfkit.benchmark(files, runs=1)
    assert bench.calls[:2] == [("a.tflite", ["zeros of a.tflite"]), ("b.tflite", ["zeros of b.tflite"])]


def test_a_dict_names_the_rows(bench, files):
    table = tfkit.benchmark({"small": files[0], "large": str(files[1])}, runs=1)
    assert table.name.tolist() == ["small", "large"]


def test_the_precision_is_told_where_it_is_known(bench, files):
    artifact = tfkit.Artifact(files[0], "tflite", "int8", 1, PARITY)
    known, unknown = tfkit.benchmark([artifact, files[1]], runs=1).precision
    assert known == "int8"
    assert pd.isna(unknown)


def test_unknown_memory_is_no_number(bench, files):
    bench.memory = None
    assert tfkit.benchmark(files, runs=1).memory_bytes.isna().all()


def test_memory_is_what_the_process_apart_told(bench, files):
    assert tfkit.benchmark(files, runs=1).memory_bytes.tolist() == [4096, 4096]


def test_quality_is_a_column_and_goes_into_the_picture(bench, files, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module_of("benchmark"), "trade_offs", lambda table: drawn.append(table) or b"png")
    quality = {"a.tflite": 1, "b.tflite": 0.5}
    table = tfkit.benchmark(files, runs=1, quality=quality, plot=tmp_path / "p.png")
    assert table.score.tolist() == [1, 0.5]
    assert list(table.columns) == [*COLUMNS, "score"]
    assert drawn[0] is table
    assert (tmp_path / "p.png").read_bytes() == b"png"


# What is refused.


@pytest.mark.parametrize(
    "quality",
    [
        {},
        {"a.tflite": 1},
        {"a.tflite": 1, "b.tflite": np.nan},
        {"a.tflite": 1, "b.tflite": "good"},
        {"a.tflite": 1, "b.tflite": 1, "c.tflite": 1},
        3,
    ],
    ids=str,
)
def test_quality_that_does_not_fit_is_refused(bench, files, quality):
    rule = r"`quality` must map.*Received: quality=.*names are a\.tflite, b\.tflite"
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.benchmark(files, runs=1, quality=quality)
    assert not bench.calls


def test_a_picture_that_cannot_be_written_is_refused_before_all_work(bench, files):
    with pytest.raises(tfkit.OutputPathError, match=r"can be written to.*Received: plot="):
        tfkit.benchmark(files, runs=1, plot=files[0] / "plot.png")
    assert not bench.calls


@pytest.mark.parametrize("artifacts", [[], {}, ()], ids=str)
def test_nothing_to_measure_is_refused(artifacts):
    with pytest.raises(
        tfkit.ArgumentError, match=r"`artifacts` must hold at least one.*Received: artifacts="
    ):
        tfkit.benchmark(artifacts)


def test_what_is_no_artifact_is_refused():
    with pytest.raises(tfkit.ArgumentTypeError, match=r"artifacts or paths. Received: artifacts=3. Pass one"):
        tfkit.benchmark(3)


@pytest.mark.parametrize("name", ["runs", "threads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3"])
def test_a_count_below_one_is_refused(bench, files, name, value):
    with pytest.raises(
        tfkit.ArgumentError, match=rf"`{name}` must be at least 1.*Received: {name}={value!r}"
    ):
        tfkit.benchmark(files, **{name: value})


def test_a_path_without_an_artifact_is_refused(tmp_path):
    with pytest.raises(
        tfkit.ArgumentError, match=r"\.tflite file or a SavedModel.*Received: path=.*which is neither"
    ):
        tfkit.benchmark([tmp_path / "missing.tflite"])


def test_an_artifact_that_cannot_be_loaded_is_an_export_error(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(tfkit.ExportError, match=r"able to load.*Received: path=.*Export it again"):
        tfkit.benchmark([tmp_path / "model"])
