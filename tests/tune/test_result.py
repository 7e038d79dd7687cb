"""Projects are written by hand here, so that each state a search can leave behind is met exactly."""

import json
import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import tfkit
from tests.models import dense_net
from tfkit import SearchResult
from tfkit.tune import plots
from tfkit.tune.result import CHECKPOINTS, SPEC, TrialRecord, write_json

COLUMNS = ["trial", "status", "learning_rate", "score", "best_epoch", "epochs", "seconds", "worker", "error"]
TRACEBACK = "Traceback (most recent call last):\nRuntimeError: boom"


def spec(direction="min", **space):
    space = space or {"learning_rate": [1e-3, 1e-1]}
    return {"space": space, "objective": "val_loss", "direction": direction, "tuner": "random"}


def completed(trial, score, **hyperparameters):
    history = {"loss": [2 * score, 1.5 * score], "val_loss": [score, score + 1.0]}
    return TrialRecord(
        trial, "completed", hyperparameters or {"learning_rate": 0.01}, score, 0, 3.5, None, history
    )


def failed(trial):
    return TrialRecord(trial, "failed", {"learning_rate": 0.02}, seconds=0.5, error=TRACEBACK)


def running(trial):
    return TrialRecord(trial, "running", {"learning_rate": 0.03})


@pytest.fixture
def project(tmp_path):
    """Writes a project and reads it."""

    def write(*records, direction="min", **space):
        write_json(tmp_path / SPEC, spec(direction, **space))
        for record in records:
            record.write(tmp_path)
        return SearchResult.load(tmp_path)

    return write


class TestTable:
    def test_has_a_row_a_trial_and_these_columns(self, project):
        table = project(completed(0, 0.5), failed(1), running(2)).table
        assert isinstance(table, pd.DataFrame)
        assert table.columns.tolist() == COLUMNS
        assert table.trial.tolist() == [0, 1, 2]

    def test_a_completed_trial(self, project):
        row = project(completed(0, 0.5)).table.iloc[0]
        assert row[COLUMNS[:7]].tolist() == [0, "completed", 0.01, 0.5, 0, 2, 3.5]
        assert pd.isna(row.error)

    def test_a_failed_trial_has_its_traceback_and_no_score(self, project):
        row = project(failed(0)).table.iloc[0]
        assert (row.status, row.error, row.epochs) == ("failed", TRACEBACK, 0)
        assert math.isnan(row.score)

    @pytest.mark.parametrize("status", ["completed", "failed", "running", "stopped"])
    def test_gives_each_status_as_it_was_written(self, project, status):
        assert project(TrialRecord(0, status, {})).table.status.tolist() == [status]

    def test_of_a_search_without_trials_is_empty_with_its_columns(self, project):
        table = project().table
        assert (len(table), table.columns.tolist()) == (0, COLUMNS)

    def test_is_in_the_order_of_the_trials(self, project):
        assert project(*(completed(n, 1.0) for n in (11, 2, 0, 7))).table.trial.tolist() == [0, 2, 7, 11]

    def test_has_columns_for_hyperparameters_that_build_added(self, project):
        table = project(completed(0, 1.0, learning_rate=0.1, depth=3), completed(1, 1.0)).table
        assert table.columns.tolist() == [*COLUMNS[:3], "depth", *COLUMNS[3:]]
        assert table.depth[0] == 3
        assert pd.isna(table.depth[1])


class TestHistory:
    def test_has_a_row_an_epoch_a_trial(self, project):
        history = project(completed(0, 1.0), completed(1, 3.0)).history
        expected = pd.DataFrame(
            {
                "trial": [0, 0, 1, 1],
                "epoch": [0, 1, 0, 1],
                "loss": [2.0, 1.5, 6.0, 4.5],
                "val_loss": [1.0, 2.0, 3.0, 4.0],
            }
        )
        pd.testing.assert_frame_equal(history, expected, check_dtype=False)

    def test_leaves_out_trials_that_finished_no_epoch(self, project):
        assert project(running(0), completed(1, 1.0), failed(2)).history.trial.tolist() == [1, 1]

    def test_of_no_finished_epoch_is_empty_with_its_columns(self, project):
        history = project(running(0)).history
        assert (len(history), history.columns.tolist()) == (0, ["trial", "epoch"])

    def test_keeps_values_that_are_no_numbers(self, project):
        record = TrialRecord(0, "failed", {}, history={"loss": [math.nan, math.inf]})
        np.testing.assert_array_equal(project(record).history.loss, [math.nan, math.inf])


class TestBest:
    @pytest.mark.parametrize(("direction", "trial"), [("min", 1), ("max", 2)])
    def test_is_the_row_with_the_best_score(self, project, direction, trial):
        result = project(*(completed(n, s) for n, s in enumerate([2.0, 1.0, 3.0])), direction=direction)
        assert (result.direction, result.best.trial) == (direction, trial)
        pd.testing.assert_series_equal(result.best, result.table.loc[trial])

    def test_is_the_first_of_equals(self, project):
        assert project(completed(0, 2.0), completed(1, 1.0), completed(2, 1.0)).best.trial == 1

    def test_is_a_completed_trial(self, project):
        stopped = TrialRecord(1, "stopped", {}, score=0.1)
        assert project(completed(0, 2.0), stopped, failed(2)).best.trial == 0

    @pytest.mark.parametrize("attribute", ["best", "best_model", "plot"])
    def test_without_a_completed_trial_says_what_went_wrong(self, project, tmp_path, attribute):
        result = project(failed(0), running(1))
        rule = r"(?s)needs a completed trial.*Received: 2 trials, none completed, in .*The last error:.*boom"
        with pytest.raises(tfkit.SearchError, match=rule):
            {"best": lambda: result.best, "best_model": result.best_model}.get(
                attribute, lambda: result.plot(tmp_path / "plot.png")
            )()

    def test_before_the_first_trial_says_that_there_is_none(self, project):
        with pytest.raises(tfkit.SearchError, match=r"Received: 0 trials, none completed"):
            project().best  # noqa: B018

    def test_model_is_the_one_that_was_saved_and_is_compiled(self, project, tmp_path):
        model = dense_net(seed=3)
        model.compile("adam", "mse")
        (tmp_path / CHECKPOINTS).mkdir()
        model.save(tmp_path / CHECKPOINTS / "000000.keras")
        loaded = project(completed(0, 1.0)).best_model()
        x = np.ones((4, 6), "float32")
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
        assert loaded.compiled


class TestLoad:
    def test_a_record_comes_back_as_it_was_written(self, project, tmp_path):
        record = completed(4, 0.25, learning_rate=0.1, kind="relu", units=8, bias=True)
        project(record)
        assert TrialRecord(**json.loads(next((tmp_path / "trials").iterdir()).read_text())) == record

    def test_a_later_record_of_a_trial_replaces_the_earlier(self, project):
        assert project(running(0), completed(0, 1.0)).table.status.tolist() == ["completed"]

    def test_a_write_leaves_no_other_file(self, project, tmp_path):
        project(running(0), completed(0, 1.0))
        names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert names == {SPEC, "000000.json"}

    def test_ignores_a_record_that_was_only_half_written(self, project, tmp_path):
        project(completed(0, 1.0))
        (tmp_path / "trials" / "000001.json.123.partial").write_text('{"trial": 1, "sta')
        assert SearchResult.load(tmp_path).table.trial.tolist() == [0]

    @pytest.mark.parametrize("kind", [str, lambda path: path])
    def test_takes_a_text_or_a_path(self, project, tmp_path, kind):
        project(completed(0, 1.0))
        assert SearchResult.load(kind(tmp_path)).directory == tmp_path

    def test_knows_the_objective_and_its_direction(self, project):
        result = project(direction="max")
        assert (result.objective, result.direction) == ("val_loss", "max")

    @pytest.mark.parametrize("name", ["", "missing"])
    def test_refuses_a_directory_without_a_search(self, tmp_path, name):
        rule = r"`directory` must be one that tfkit\.search has used\. Received: directory='.*no search\.json"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            SearchResult.load(tmp_path / name)

    def test_needs_neither_tensorflow_nor_keras(self, project, tmp_path):
        project(completed(0, 1.0), failed(1), completed(2, 0.5))
        code = (
            "import sys, tfkit\n"
            "result = tfkit.SearchResult.load(sys.argv[1])\n"
            "assert (len(result.table), len(result.history), result.best.trial) == (3, 4, 2)\n"
            "result.plot(sys.argv[1] + '/plot.png')\n"
            "assert not {'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules), 'loaded'\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)


class TestPlot:
    @pytest.mark.parametrize(
        "hyperparameters",
        [
            {"learning_rate": 0.1},
            {"weight_decay": 0.1},
            {"learning_rate": 0.1, "weight_decay": 0.1},
            {"learning_rate": 0.1, "weight_decay": 0.0},
            {"units": 8},
            {"activation": "relu"},
            {"bias": True},
            {"learning_rate": 0.1, "activation": "relu"},
        ],
        ids=str,
    )
    def test_writes_an_image_of_any_space(self, project, tmp_path, hyperparameters):
        result = project(
            completed(0, 2.0, **hyperparameters),
            completed(1, 1.0, **hyperparameters),
            **{name: [value] for name, value in hyperparameters.items()},
        )
        result.plot(tmp_path / "plot.png")
        image = matplotlib.image.imread(tmp_path / "plot.png")
        assert image.ndim == 3
        assert image[..., :3].std() > 0

    def test_leaves_out_trials_without_a_score(self, project):
        table = project(completed(0, 2.0), failed(1), running(2), completed(3, 1.0)).table
        trials, space, _, parallel = plots.draw(table, ["learning_rate"], "val_loss", "min").axes
        assert trials.lines[0].get_xydata().tolist() == [[0, 2.0], [3, 1.0]]
        assert space.collections[0].get_offsets().tolist() == [[0.01, 2.0], [0.01, 1.0]]
        assert sum(line.get_alpha() == 0.8 for line in parallel.lines) == 2

    def test_the_ending_gives_the_format(self, project, tmp_path):
        project(completed(0, 2.0)).plot(tmp_path / "plot.svg")
        assert "<svg" in (tmp_path / "plot.svg").read_text()

    def test_takes_a_text(self, project, tmp_path):
        project(completed(0, 2.0)).plot(str(tmp_path / "plot.png"))
        assert (tmp_path / "plot.png").is_file()
