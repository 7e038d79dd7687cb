"""What an interrupted search leaves, and how it goes on: processes are killed, files torn."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import tfkit
from tests.tune.test_search import ONES, RATES, one_weight, run, score
from tfkit import SearchResult, SearchSpace
from tfkit.tune.snapshot import Snapshot

ROOT = pathlib.Path(__file__).parents[2]
JOB = """
import sys, time
import keras
from tests.tune.test_search import ONES, one_weight, run
from tfkit import SearchSpace

class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
        time.sleep(float(sys.argv[2]))

run(sys.argv[1], space=SearchSpace(learning_rate=[0.1, 0.2, 0.3]), max_trials=3, epochs=6, callbacks=[Slow()],
    tuner=sys.argv[3])
"""


def start(folder, pause, tuner="grid"):
    command = [sys.executable, "-c", JOB, str(folder), str(pause), tuner]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def kill_after(folder, epochs):
    """Kills a search when so many epochs of all its trials are done."""
    process = start(folder, 0.2)
    for _ in range(epochs):
        assert process.stdout.readline().startswith("epoch")
    time.sleep(0.1)  # amid a callback of the user at the end of the last of them
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


@pytest.mark.slow
class TestKilled:
    @pytest.fixture(scope="class")
    def killed(self, tmp_path_factory):
        """A search that died in the third epoch of its second trial, and its result then and in the end."""
        folder = tmp_path_factory.mktemp("killed")
        kill_after(folder, 6 + 3)
        then = SearchResult.load(folder)
        process = start(folder, 0)
        lines = process.stdout.read().splitlines()
        assert process.wait(60) == 0
        process.stdout.close()
        return then, SearchResult.load(folder), lines

    def test_what_was_done_can_be_read(self, killed):
        assert killed[0].table.status.tolist() == ["completed", "running"]
        assert killed[0].table.epochs.tolist() == [6, 2]

    def test_all_trials_complete_under_their_numbers(self, killed):
        table = killed[1].table
        assert table.status.tolist() == ["completed"] * 3
        assert table.learning_rate.tolist() == [0.1, 0.2, 0.3]
        assert table.epochs.tolist() == [6] * 3

    def test_only_what_was_missing_is_trained(self, killed):
        assert [int(line.split()[1]) for line in killed[2]] == [2, 3, 4, 5, 0, 1, 2, 3, 4, 5]

    def test_scores_are_those_of_a_search_that_was_never_killed(self, killed):
        expected = [score(rate, 6) for rate in (0.1, 0.2, 0.3)]
        np.testing.assert_allclose(killed[1].table.score, expected, rtol=1e-4)

    def test_the_best_model_is_there(self, killed):
        loss = killed[1].best_model().evaluate(ONES, ONES, verbose=0)
        assert loss == pytest.approx(score(0.3, 6), rel=1e-3)

    def test_no_snapshot_is_left(self, killed):
        assert not (killed[1].directory / "snapshots").exists()


LAST_WORDS = """
import os, sys
from tests.tune.test_search import one_weight, run
from tfkit.tune.trial import SearchTuner

def build():
    if sys.argv[2] == "failed":
        raise RuntimeError("a fault of its own")
    return one_weight()

SearchTuner.on_trial_end = lambda *_: os._exit(9)
run(sys.argv[1], build)
"""


@pytest.mark.slow
@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_trial_of_which_keras_tuner_never_heard_is_not_run_again(tmp_path, status):
    """The process ends between the trial's record and keras-tuner's own."""
    command = [sys.executable, "-W", "ignore", "-c", LAST_WORDS, str(tmp_path), status]
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode == 9
    record = tmp_path / "trials" / "000000.json"
    before = record.read_bytes()
    assert json.loads(before)["status"] == status
    assert run(tmp_path).table.status.tolist() == [status, "completed"]
    assert record.read_bytes() == before


def test_a_trial_that_a_wrong_call_ended_is_run_by_the_corrected_one(tmp_path):
    run(tmp_path, max_trials=1)
    with pytest.raises(tfkit.ArgumentError, match="`build` must return a compiled Keras 3 model"):
        run(tmp_path, lambda: None)
    assert SearchResult.load(tmp_path).table.status.tolist() == ["completed", "stopped"]
    assert run(tmp_path).table.status.tolist() == ["completed"] * 2


def interrupted(folder, tuner="grid", trials=3):
    """A search of which one trial is done and one under way."""
    count = []

    def stop(epoch, logs=None):
        count.append(epoch)
        if len(count) == (2 if tuner == "hyperband" else 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(folder, tuner, trials, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)])


def again(folder, tuner="grid", trials=3, **options):
    space = SearchSpace(learning_rate=RATES)
    return run(folder, space=space, tuner=tuner, max_trials=trials, epochs=3, seed=0, **options)


TUNERS = pytest.mark.parametrize("tuner", ["grid", "random", "bayesian", "hyperband"])


class TestTornFiles:
    @TUNERS
    def test_a_trial_of_keras_tuners_is_made_from_its_record(self, tuner, tmp_path):
        interrupted(tmp_path, tuner)
        path = min(tmp_path.glob("keras_tuner/trial_*/trial.json"))
        path.write_text(path.read_text()[:40])
        table = again(tmp_path, tuner).table
        assert table.status.tolist() == ["completed"] * 3

    def test_the_oracles_file_is_named(self, tmp_path):
        interrupted(tmp_path)
        path = tmp_path / "keras_tuner" / "oracle.json"
        path.write_text(path.read_text()[:40])
        rule = r"must be whole\. Received: '.*oracle\.json'.*begin anew with overwrite=True"
        with pytest.raises(tfkit.SearchError, match=rule):
            again(tmp_path)
        assert again(tmp_path, overwrite=True).table.status.tolist() == ["completed"] * 3

    def test_the_description_is_named(self, tmp_path):
        interrupted(tmp_path)
        (tmp_path / "search.json").write_text('{"space": ')
        rule = r"`directory` must hold a whole search\.json\. Received: directory="
        for call in (lambda: again(tmp_path), lambda: SearchResult.load(tmp_path)):
            with pytest.raises(tfkit.ArgumentError, match=rule):
                call()

    def test_a_torn_record_is_left_out_with_a_warning(self, tmp_path):
        interrupted(tmp_path)
        (tmp_path / "trials" / "000000.json").write_text("{")
        with pytest.warns(UserWarning, match=r"1 trials are left out, .* 000000\.json in "):
            assert SearchResult.load(tmp_path).table.trial.tolist() == [1]

    def test_a_torn_snapshot_is_passed_by(self, tmp_path):
        interrupted(tmp_path)
        [path] = (tmp_path / "snapshots").iterdir()
        path.write_bytes(path.read_bytes()[:100])
        table = again(tmp_path).table
        assert table.epochs.tolist() == [3] * 3

    @pytest.mark.parametrize("part", [0, 10, 200, -1])
    def test_half_a_snapshot_is_none(self, part, tmp_path):
        path = tmp_path / "s.npz"
        Snapshot([np.ones(3)], [np.zeros(2)], {"loss": [1.0]}).write(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:part])
        assert Snapshot.read(path) is None

    def test_a_whole_snapshot_comes_back(self, tmp_path):
        path = tmp_path / "s.npz"
        Snapshot([np.arange(3), np.float32(2.5)], [np.zeros((2, 1))], {"loss": [1.0, 0.1]}).write(path)
        found = Snapshot.read(path)
        assert found.history == {"loss": [1.0, 0.1]}
        np.testing.assert_array_equal(found.values[0], [0, 1, 2])
        assert found.values[1] == np.float32(2.5)
        assert found.best[0].shape == (2, 1)
        assert list(tmp_path.iterdir()) == [path]


class TestInterrupted:
    @TUNERS
    def test_a_search_goes_on_with_every_tuner(self, tuner, tmp_path):
        interrupted(tmp_path, tuner, trials=4)
        then = SearchResult.load(tmp_path).table
        table = again(tmp_path, tuner, trials=4).table
        assert table.status.tolist() == ["completed"] * 4
        finished = then[then.status == "completed"].trial
        assert len(finished) >= 1
        assert table.seconds[finished].tolist() == then.seconds[finished].tolist()

    def test_momentum_goes_on_too(self, tmp_path):
        def build():
            return one_weight(keras.optimizers.SGD(0.01, momentum=0.9))

        def search(folder, **options):
            space = SearchSpace(learning_rate=[0.02])
            return run(folder, build, space=space, max_trials=1, epochs=6, **options)

        def stop(epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "a", callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=stop)])
        whole, resumed = search(tmp_path / "b"), search(tmp_path / "a")
        np.testing.assert_allclose(resumed.history.val_loss, whole.history.val_loss, rtol=1e-6)
        assert resumed.best.score == pytest.approx(whole.best.score)

    def test_the_best_epoch_before_the_interruption_counts(self, tmp_path):
        """Above a rate of 1 every epoch is worse than the one before."""

        def search(**options):
            return run(tmp_path, space=SearchSpace(learning_rate=[1.2]), max_trials=1, epochs=4, **options)

        def stop(epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search(callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=stop)])
        result = search()
        assert result.best.best_epoch == 0
        loss = result.best_model().evaluate(ONES, ONES, verbose=0)
        assert loss == pytest.approx(score(1.2, 1), rel=1e-5)


class TestHyperband:
    @pytest.fixture(scope="class")
    def result(self, tmp_path_factory):
        space = SearchSpace(learning_rate=(0.01, 0.4))
        folder = tmp_path_factory.mktemp("hyperband")
        return run(folder, space=space, tuner="hyperband", max_trials=13, epochs=9, seed=1)

    def test_trials_have_the_epochs_of_their_round(self, result):
        assert set(result.table.epochs) == {1, 2, 6}  # 1, then on to 3, then on to 9

    def test_a_later_round_goes_on_where_the_earlier_ended(self, result):
        for row in result.table.itertuples():
            last = result.history[result.history.trial == row.trial].val_loss.iloc[-1]
            reached = {1: 1, 2: 3, 6: 9}[row.epochs]
            assert last == pytest.approx((1 - 2 * row.learning_rate) ** (2 * reached), rel=1e-3, abs=1e-9)

    def test_keras_tuners_own_values_are_left_out(self, result):
        assert not any("tuner" in name for name in result.table.columns)

    def test_no_more_trials_than_asked_for(self, result):
        assert len(result.table) == 13


class TestMedianStopping:
    def test_a_trial_behind_the_median_stops(self, tmp_path):
        rates = [0.3, 0.31, 0.32, 0.33, 0.34, 0.001, 0.35]
        space = SearchSpace(learning_rate=rates)
        table = run(tmp_path, space=space, max_trials=7, epochs=5, median_stopping=True).table
        assert table.status.tolist() == ["completed"] * 5 + ["stopped", "completed"]
        assert table.epochs.tolist() == [5] * 5 + [1, 5]
        assert table.error.isna().all()

    def test_is_off_unless_asked_for(self, tmp_path):
        space = SearchSpace(learning_rate=[0.3, 0.31, 0.32, 0.33, 0.34, 0.001])
        assert run(tmp_path, space=space, max_trials=6, epochs=3).table.epochs.tolist() == [3] * 6


def test_tensorboards_hyperparameters_are_written(tmp_path):
    board = keras.callbacks.TensorBoard(str(tmp_path / "logs"))
    run(tmp_path / "search", callbacks=[board])
    folders = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert folders == ["trial_000000", "trial_000001"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "logs" / "trial_000001"))
    events.Reload()
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


def test_records_are_json_without_the_engines_values(tmp_path):
    run(tmp_path)
    record = json.loads((tmp_path / "trials" / "000000.json").read_text())
    assert record["worker"] == "tuner0"
