"""One weight that starts at 0 and learns 1 from x = 1 by mean squared error, one update an epoch.

Its error is multiplied by ``1 - 2 * rate`` at each update, so every score has a closed form; above a
rate of 1 the error grows and the first epoch is the best.
"""

import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import tfkit
from tests.models import dense_net
from tfkit import SearchResult, SearchSpace

ROOT = pathlib.Path(__file__).parents[2]
ONES = np.ones((4, 1), "float32")
COLUMNS = ["trial", "status", "learning_rate", "score", "best_epoch", "epochs", "seconds", "worker", "error"]
RATES = [0.1, 0.2, 0.3, 0.4]


def one_weight(optimizer=None, *, start="zeros", metrics=()):
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer=start)
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(optimizer or keras.optimizers.SGD(0.01), "mse", metrics=list(metrics), run_eagerly=True)
    return model


def build():
    return one_weight()


def build_hp(hp):
    return one_weight()


def run(directory, build=build, x=ONES, y=ONES, **options):
    """`search` with what these tests share."""
    shared = {
        "space": SearchSpace(learning_rate=RATES),
        "validation_data": (ONES, ONES),
        "tuner": "grid",
        "max_trials": 2,
        "epochs": 1,
        "verbose": 0,
    }
    return tfkit.search(build, x, y, directory=directory, **{**shared, **options})


def score(rate, epochs):
    """The best validation loss within so many epochs."""
    return min((1 - 2 * rate) ** (2 * epoch) for epoch in range(1, epochs + 1))


def interrupt_at(epochs):
    """A callback that raises KeyboardInterrupt once, at the end of the n-th epoch of all trials."""
    count = itertools.count(1)

    def stop(epoch, logs=None):
        if next(count) == epochs:
            raise KeyboardInterrupt

    return keras.callbacks.LambdaCallback(on_epoch_end=stop)


def records(directory):
    return {path.name: path.read_bytes() for path in (directory / "trials").iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished random search of five trials over rates on both sides of 1."""
    space = SearchSpace(learning_rate=[0.1, 0.4, 1.2, 0.3, 1.4])
    folder = tmp_path_factory.mktemp("finished")
    return run(folder, space=space, tuner="random", max_trials=5, epochs=3, seed=3)


class TestResult:
    def test_table_has_these_columns(self, finished):
        assert finished.table.columns.tolist() == COLUMNS

    def test_table_has_a_completed_row_a_trial(self, finished):
        assert finished.table.trial.tolist() == [0, 1, 2, 3, 4]
        assert finished.table.status.unique().tolist() == ["completed"]
        assert finished.table.error.isna().all()

    def test_scores_are_those_of_the_trials_own_rate(self, finished):
        expected = [score(rate, 3) for rate in finished.table.learning_rate]
        np.testing.assert_allclose(finished.table.score, expected, rtol=1e-4)

    def test_best_epoch_is_the_one_with_the_best_score(self, finished):
        expected = [2 if rate < 1 else 0 for rate in finished.table.learning_rate]
        assert finished.table.best_epoch.tolist() == expected

    def test_epochs_are_all_that_were_trained(self, finished):
        assert finished.table.epochs.tolist() == [3] * 5

    def test_seconds_are_positive(self, finished):
        assert (finished.table.seconds > 0).all()

    def test_history_has_the_metrics_of_every_epoch(self, finished):
        history = finished.history.merge(finished.table[["trial", "learning_rate"]])
        left = 1 - 2 * history.learning_rate
        assert len(history) == 15
        np.testing.assert_allclose(history.loss, left ** (2 * history.epoch), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(history.val_loss, left ** (2 * history.epoch + 2), rtol=1e-4, atol=1e-9)

    def test_best_is_the_rate_with_the_least_score(self, finished):
        assert finished.best.learning_rate == 0.4

    def test_best_model_evaluates_to_the_best_score(self, finished):
        loss = finished.best_model().evaluate(ONES, ONES, verbose=0)
        assert loss == pytest.approx(finished.best.score, rel=1e-5)

    def test_load_gives_the_same_table(self, finished):
        assert SearchResult.load(finished.directory).table.equals(finished.table)

    def test_best_model_is_that_of_the_best_epoch_and_not_of_the_last(self, tmp_path):
        result = run(tmp_path, space=SearchSpace(learning_rate=[1.5]), epochs=3)
        loss = result.best_model().evaluate(ONES, ONES, verbose=0)
        assert loss == pytest.approx(score(1.5, 3)) == pytest.approx(4.0)

    def test_best_model_of_a_network_evaluates_to_the_best_score(self, tmp_path):
        def network():
            model = dense_net(seed=0)
            model.compile("adam", "mse", run_eagerly=True)
            return model

        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(16, 6)).astype("float32"), rng.normal(size=(16, 2)).astype("float32")
        result = run(tmp_path, network, x, y, validation_data=(x, y), epochs=2, max_trials=2)
        loss = result.best_model().evaluate(x, y, verbose=0)
        assert loss == pytest.approx(result.best.score, rel=1e-5)


class TestTuners:
    def test_grid_tries_every_combination(self, tmp_path):
        space = SearchSpace(learning_rate=[0.1, 0.2], weight_decay=[0.0, 0.5], kind=["a", "b"])
        table = run(tmp_path, build_hp, space=space, max_trials=8).table
        tried = set(zip(table.learning_rate, table.weight_decay, table.kind))
        assert tried == set(itertools.product([0.1, 0.2], [0.0, 0.5], ["a", "b"]))

    @pytest.mark.parametrize("tuner", ["grid", "random"])
    def test_ends_when_no_combination_is_left(self, tmp_path, tuner):
        result = run(tmp_path, space=SearchSpace(learning_rate=[0.1, 0.2]), tuner=tuner, max_trials=6)
        assert sorted(result.table.learning_rate) == [0.1, 0.2]

    @pytest.mark.parametrize("tuner", ["bayesian", "random"])
    def test_draws_from_a_range(self, tmp_path, tuner):
        space = SearchSpace(learning_rate=(1e-3, 0.4))
        result = run(tmp_path, space=space, tuner=tuner, max_trials=4, seed=1)  # bayesian fits its 4th
        assert result.table.status.tolist() == ["completed"] * 4
        assert result.table.learning_rate.between(1e-3, 0.4).all()
        np.testing.assert_allclose(
            result.table.score, [score(r, 1) for r in result.table.learning_rate], 1e-4
        )

    @pytest.mark.parametrize("ends", [(np.float32(0.1), np.float32(0.2)), (np.int64(1), np.int64(9))])
    def test_takes_the_ends_of_a_range_from_numpy(self, tmp_path, ends):
        table = run(tmp_path, build_hp, space=SearchSpace(size=ends), tuner="random").table
        assert table["size"].between(*ends).all()

    @pytest.mark.parametrize("seed", [7, 0])
    def test_a_seed_gives_the_same_trials(self, tmp_path, seed):
        space = SearchSpace(learning_rate=(1e-3, 0.4))
        first, second = (run(tmp_path / name, space=space, tuner="random", seed=seed).table for name in "ab")
        assert first.learning_rate.tolist() == second.learning_rate.tolist()

    def test_a_seed_seeds_every_trial_alike(self, tmp_path):
        def random_start(hp):
            return one_weight(start="glorot_uniform")

        result = run(tmp_path, random_start, space=SearchSpace(tag=["a", "b"]), seed=5)
        assert result.table.score.nunique() == 1


class TestRateAndDecay:
    @pytest.mark.parametrize("wrap", [lambda sgd: sgd, keras.optimizers.LossScaleOptimizer])
    def test_the_rate_reaches_the_optimizer(self, tmp_path, wrap):
        def scaled():
            return one_weight(wrap(keras.optimizers.SGD(0.01)))

        table = run(tmp_path, scaled).table
        np.testing.assert_allclose(table.score, [score(rate, 1) for rate in table.learning_rate], rtol=1e-4)

    @pytest.mark.parametrize("wrap", [lambda sgd: sgd, keras.optimizers.LossScaleOptimizer])
    def test_the_decay_reaches_the_optimizer(self, tmp_path, wrap):
        # x = 0 leaves no gradient, so each of four updates multiplies the weight by 1 - rate * decay
        def decaying():
            return one_weight(wrap(keras.optimizers.SGD(0.5)), start="ones")

        space = SearchSpace(weight_decay=[0.3])
        model = run(tmp_path, decaying, 0 * ONES, 0 * ONES, space=space, batch_size=1).best_model()
        np.testing.assert_allclose(model.get_weights()[0], [[(1 - 0.5 * 0.3) ** 4]], rtol=1e-5)

    def test_both_reach_the_optimizer_together(self, tmp_path):
        space = SearchSpace(learning_rate=[0.2], weight_decay=[0.3])
        result = run(
            tmp_path, lambda: one_weight(start="ones"), 0 * ONES, 0 * ONES, space=space, batch_size=1
        )
        np.testing.assert_allclose(result.best_model().get_weights()[0], [[(1 - 0.06) ** 4]], rtol=1e-5)

    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "lion"])
    def test_other_optimizers_keep_both(self, tmp_path, optimizer):
        space = SearchSpace(learning_rate=[0.02], weight_decay=[0.004])
        found = run(tmp_path, lambda: one_weight(optimizer), space=space).best_model().optimizer
        assert float(found.learning_rate) == pytest.approx(0.02)
        assert found.weight_decay == pytest.approx(0.004)

    def test_what_the_space_leaves_out_stays_as_build_made_it(self, tmp_path):
        def own():
            return one_weight(keras.optimizers.SGD(0.25, weight_decay=0.125))

        result = run(tmp_path, own, space=SearchSpace(weight_decay=[0.0]))
        assert float(result.best_model().optimizer.learning_rate) == 0.25


class TestHyperparametersInBuild:
    def test_build_reads_the_space_and_adds_its_own(self, tmp_path):
        made = []

        def sized(hp):
            made.append((hp.get("units"), hp.Int("depth", 1, 2), hp.get("learning_rate")))
            return one_weight()

        space = SearchSpace(learning_rate=[0.1, 0.2], units=[3, 5])
        table = run(tmp_path, sized, space=space, max_trials=8).table
        assert table.columns.tolist() == [*COLUMNS[:3], "units", "depth", *COLUMNS[3:]]
        rows = set(zip(table.units, table.depth, table.learning_rate))
        assert rows == set(itertools.product([3, 5], [1, 2], [0.1, 0.2]))
        assert rows == set(made)

    def test_build_may_give_them_a_default(self, tmp_path):
        seen = []

        def sized(hp=None):
            seen.append(hp.get("units"))
            return one_weight()

        run(tmp_path, sized, space=SearchSpace(units=[3]))
        assert set(seen) == {3}

    def test_build_may_give_them_any_name(self, tmp_path):
        seen = []

        def sized(hyperparameters):
            seen.append(hyperparameters.get("units"))
            return one_weight()

        run(tmp_path, sized, space=SearchSpace(units=[3]))
        assert set(seen) == {3}

    def test_a_build_of_optional_arguments_is_called_without_any(self, tmp_path):
        seen = []

        def sized(units=8):
            seen.append(units)
            return one_weight()

        run(tmp_path, sized, max_trials=1)
        assert set(seen) == {8}


class TestData:
    def test_takes_a_dataset(self, tmp_path):
        data = tf.data.Dataset.from_tensor_slices((ONES, ONES)).batch(4)
        table = run(tmp_path, build, data, None, validation_data=data).table
        np.testing.assert_allclose(table.score, [score(rate, 1) for rate in table.learning_rate], rtol=1e-4)

    def test_takes_a_validation_split(self, tmp_path):
        table = run(tmp_path, validation_data=None, validation_split=0.5).table
        np.testing.assert_allclose(table.score, [score(rate, 1) for rate in table.learning_rate], rtol=1e-4)

    def test_takes_a_batch_size(self, tmp_path):
        table = run(tmp_path, batch_size=1).table  # four updates an epoch
        np.testing.assert_allclose(table.score, [score(rate, 4) for rate in table.learning_rate], rtol=1e-4)

    def test_an_objective_of_the_training_needs_no_validation(self, tmp_path):
        result = run(tmp_path, validation_data=None, objective="loss", epochs=2)
        expected = [(1 - 2 * rate) ** 2 for rate in result.table.learning_rate]
        np.testing.assert_allclose(result.table.score, expected, rtol=1e-4)

    def test_an_objective_can_be_one_to_maximise(self, tmp_path):
        goal = keras_tuner.Objective("val_mae", direction="max")
        result = run(tmp_path, lambda: one_weight(metrics=["mae"]), objective=goal)
        assert result.direction == "max"
        assert result.best.learning_rate == min(RATES)
        model = result.best_model()
        assert model.evaluate(ONES, ONES, verbose=0, return_dict=True)["mae"] == pytest.approx(0.8)

    def test_a_metric_that_keras_knows_is_maximised_by_name(self, tmp_path):
        result = run(
            tmp_path, lambda: one_weight(metrics=["accuracy"]), objective="val_accuracy", max_trials=1
        )
        assert result.direction == "max"

    def test_callbacks_are_copied_for_each_trial(self, tmp_path):
        stopping = keras.callbacks.EarlyStopping("val_loss", patience=1)
        space = SearchSpace(learning_rate=[1.5, 0.1, 1.2])
        table = run(tmp_path, space=space, max_trials=3, epochs=4, callbacks=[stopping]).table
        assert dict(zip(table.learning_rate, table.epochs)) == {1.5: 2, 0.1: 4, 1.2: 2}
        assert stopping.stopped_epoch == 0


def broken(kinds, error):
    def make(hp):
        if hp.get("kind") in kinds:
            raise error
        return one_weight()

    return make


class TestFailedTrials:
    @pytest.mark.parametrize("kinds", [["good", "bad", "fine"], ["bad", "good", "fine"]], ids=str)
    def test_a_build_that_raises_fails_its_trial_alone(self, tmp_path, kinds):
        make = broken({"bad"}, RuntimeError("no such size"))
        table = run(tmp_path, make, space=SearchSpace(kind=kinds), max_trials=3).table
        assert dict(zip(table.kind, table.status)) == {
            "good": "completed",
            "bad": "failed",
            "fine": "completed",
        }

    def test_a_failed_trial_keeps_its_traceback_and_has_no_score(self, tmp_path):
        make = broken({"bad"}, RuntimeError("no such size"))
        row = run(tmp_path, make, space=SearchSpace(kind=["good", "bad"])).table.iloc[1]
        assert row.error.startswith("Traceback (most recent call last)")
        assert row.error.rstrip().endswith("RuntimeError: no such size")
        assert np.isnan(row.score)

    def test_a_build_that_raises_tfkits_own_error_fails_its_trial_alone(self, tmp_path):
        make = broken({"bad"}, tfkit.LayerNotFoundError("no layer of that name at this depth"))
        table = run(tmp_path, make, space=SearchSpace(kind=["good", "bad", "fine"]), max_trials=3).table
        assert table.status.tolist() == ["completed", "failed", "completed"]

    def test_a_fit_that_raises_fails_its_trial_alone(self, tmp_path):
        count = itertools.count()

        def stumble(logs=None):
            if next(count) == 1:
                raise MemoryError("out of memory")

        callback = keras.callbacks.LambdaCallback(on_train_begin=stumble)
        table = run(tmp_path, callbacks=[callback], max_trials=3).table
        assert table.status.tolist() == ["completed", "failed", "completed"]
        assert "MemoryError: out of memory" in table.error[1]

    def test_many_failures_in_a_row_do_not_end_the_search(self, tmp_path):
        make = broken({"b", "c", "d", "e"}, RuntimeError("no"))
        table = run(tmp_path, make, space=SearchSpace(kind=list("abcdef")), max_trials=6).table
        assert table.status.tolist() == ["completed", *["failed"] * 4, "completed"]

    def test_a_loss_that_is_never_a_number_fails_its_trial_alone(self, tmp_path):
        def make(hp):
            start = float("nan") if hp.get("kind") == "bad" else 0.0
            return one_weight(start=keras.initializers.Constant(start))

        table = run(tmp_path, make, space=SearchSpace(kind=["good", "bad", "fine"]), max_trials=3).table
        assert table.status.tolist() == ["completed", "failed", "completed"]
        assert "val_loss was never a finite number" in table.error[1]

    def test_a_loss_that_becomes_no_number_is_scored_by_its_last_epoch_before(self, tmp_path):
        def poison(epoch, logs=None):
            if epoch == 1:
                logs["val_loss"] = float("nan")

        callback = keras.callbacks.LambdaCallback(on_epoch_end=poison)
        result = run(tmp_path, epochs=2, callbacks=[callback])
        assert result.table.status.tolist() == ["completed"] * 2
        assert result.table.best_epoch.tolist() == [0, 0]
        np.testing.assert_allclose(result.table.score, [score(0.1, 1), score(0.2, 1)], rtol=1e-4)

    @pytest.mark.parametrize("stage", ["build", "fit"])
    def test_a_search_whose_trials_all_fail_gives_the_last_traceback(self, tmp_path, stage):
        def fail(*_):
            raise RuntimeError("always")

        make = fail if stage == "build" else build
        callbacks = [keras.callbacks.LambdaCallback(on_train_begin=fail)] if stage == "fit" else []
        rule = (
            r"(?s)At least one trial must complete\. Received: 2 trials, all failed\. "
            r"The last error:\nTraceback.*RuntimeError: always"
        )
        with pytest.raises(tfkit.SearchError, match=rule):
            run(tmp_path, (lambda: make()) if stage == "build" else make, callbacks=callbacks)


class TestContinuing:
    @pytest.mark.parametrize("trial", [0, 1])
    @pytest.mark.parametrize("tuner", ["bayesian", "random", "grid"])
    def test_an_interrupted_trial_is_run_again_and_finished_ones_are_kept(self, tmp_path, tuner, trial):
        callback = interrupt_at(2 * trial + 1)

        def call():
            return run(tmp_path, tuner=tuner, max_trials=3, epochs=2, seed=2, callbacks=[callback])

        with pytest.raises(KeyboardInterrupt):
            call()
        between, kept = SearchResult.load(tmp_path).table, records(tmp_path)
        kept.pop(f"{trial:06d}.json")
        assert between.status.tolist() == ["completed"] * trial + ["stopped"]

        table = call().table
        assert table.status.tolist() == ["completed"] * 3
        assert table.learning_rate.tolist()[: trial + 1] == between.learning_rate.tolist()
        assert {name: content for name, content in records(tmp_path).items() if name in kept} == kept
        np.testing.assert_allclose(table.score, [score(rate, 2) for rate in table.learning_rate], rtol=1e-4)

    @pytest.mark.parametrize("trial", [0, 1])
    def test_an_interrupted_trial_keeps_its_hyperparameters_without_a_seed(self, tmp_path, trial):
        options = {"space": SearchSpace(learning_rate=(1e-3, 0.4)), "tuner": "random"}
        callback = interrupt_at(trial + 1)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, callbacks=[callback], **options)
        between = SearchResult.load(tmp_path).table
        table = run(tmp_path, callbacks=[callback], **options).table
        assert table.learning_rate[trial] == between.learning_rate[trial]

    def test_a_random_search_gives_what_it_would_have_without_the_interruption(self, tmp_path):
        options = {
            "space": SearchSpace(learning_rate=(1e-3, 0.4)),
            "tuner": "random",
            "max_trials": 3,
            "seed": 4,
        }
        callback = interrupt_at(2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a", callbacks=[callback], **options)
        continued = run(tmp_path / "a", callbacks=[callback], **options).table
        whole = run(tmp_path / "b", **options).table
        assert continued[["learning_rate", "score"]].equals(whole[["learning_rate", "score"]])

    def test_the_best_model_from_before_the_interruption_is_kept(self, tmp_path):
        start = [0.99]

        def make():
            return one_weight(start=keras.initializers.Constant(start[0]))

        callback = interrupt_at(2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, make, tuner="random", seed=2, callbacks=[callback])
        start[0] = 0.0  # every later trial is worse
        result = run(tmp_path, make, tuner="random", seed=2, callbacks=[callback])
        assert result.best.trial == 0
        loss = result.best_model().evaluate(ONES, ONES, verbose=0)
        assert loss == pytest.approx(result.best.score, rel=1e-5)

    def test_a_finished_search_trains_nothing_more(self, tmp_path):
        before = run(tmp_path).table

        def never(logs=None):
            raise AssertionError("trained again")

        callback = keras.callbacks.LambdaCallback(on_train_begin=never)
        assert run(tmp_path, callbacks=[callback]).table.equals(before)

    @pytest.mark.parametrize("tuner", ["bayesian", "random", "grid"])
    def test_a_finished_search_can_be_extended(self, tmp_path, tuner):
        first = run(tmp_path, max_trials=1, tuner=tuner, seed=1).table
        second = run(tmp_path, max_trials=3, tuner=tuner, seed=1).table
        assert second[:1].equals(first)
        assert second.status.tolist() == ["completed"] * 3

    @pytest.mark.parametrize("trial", [0, 1])
    def test_a_killed_process_is_continued(self, tmp_path, trial):
        code = f"""
import time
import keras, tfkit
from tests.tune.test_search import run
from pathlib import Path

def wait(logs=None):
    if len(list(Path({str(tmp_path / "search" / "trials")!r}).glob("*.json"))) == {trial + 1}:
        Path({str(tmp_path / "reached")!r}).touch()
        time.sleep(300)

run({str(tmp_path / "search")!r}, tuner="random", max_trials=3, seed=1,
    callbacks=[keras.callbacks.LambdaCallback(on_train_begin=wait)])
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "reached").exists():
                assert process.poll() is None, "the search ended by itself"
                assert time.monotonic() < deadline, "the search never reached the trial"
                time.sleep(0.1)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait(timeout=30) == -signal.SIGKILL
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=30)

        before = SearchResult.load(tmp_path / "search").table
        assert before.status.tolist() == ["completed"] * trial + ["running"]
        kept = {name: text for name, text in records(tmp_path / "search").items() if int(name[:6]) < trial}
        table = run(tmp_path / "search", tuner="random", max_trials=3, seed=1).table
        assert table.status.tolist() == ["completed"] * 3
        assert table.learning_rate[trial] == before.learning_rate[trial]
        after = records(tmp_path / "search")
        assert {name: after[name] for name in kept} == kept


class TestDirectory:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (
                {"space": SearchSpace(learning_rate=[0.1, 0.5])},
                r"space: \{'learning_rate': \{'choice': \[0\.1, 0\.2",
            ),
            ({"space": SearchSpace(learning_rate=RATES, weight_decay=[0.0])}, r"space: .*'weight_decay'"),
            ({"epochs": 2}, "epochs: 1 there, 2 here"),
            ({"tuner": "random"}, "tuner: 'grid' there, 'random' here"),
            ({"objective": "loss"}, "objective: 'val_loss' there, 'loss' here"),
            ({"seed": 1}, "seed: None there, 1 here"),
        ],
        ids=["rates", "another name", "epochs", "tuner", "objective", "seed"],
    )
    def test_another_search_in_it_is_refused_by_the_difference(self, finished_grid, change, named):
        rule = rf"must be empty or hold the same search\. Received: .* differs in {named}.*overwrite=True"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(finished_grid, **change)

    def test_a_range_where_a_choice_was_is_refused(self, tmp_path):
        run(tmp_path, build_hp, space=SearchSpace(units=[3, 6]), max_trials=1)
        with pytest.raises(tfkit.ArgumentError, match="differs in space"):
            run(tmp_path, build_hp, space=SearchSpace(units=(3, 6)), max_trials=1)

    def test_a_refusal_leaves_it_as_it_was(self, finished_grid):
        before = records(finished_grid)
        with pytest.raises(tfkit.ArgumentError):
            run(finished_grid, epochs=2)
        assert records(finished_grid) == before

    def test_overwrite_begins_anew(self, tmp_path):
        run(tmp_path)
        result = run(tmp_path, space=SearchSpace(learning_rate=[0.25]), overwrite=True)
        assert result.table.learning_rate.tolist() == [0.25]

    def test_overwrite_deletes_no_file_of_someone_else(self, tmp_path):
        run(tmp_path, max_trials=1)
        (tmp_path / "notes.txt").write_text("mine")
        run(tmp_path, max_trials=1, overwrite=True)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_overwrite_needs_no_earlier_search(self, tmp_path):
        assert len(run(tmp_path / "new", max_trials=1, overwrite=True).table) == 1

    def test_is_made_with_its_parents(self, tmp_path):
        run(tmp_path / "a" / "b", max_trials=1)
        assert (tmp_path / "a" / "b" / "search.json").is_file()

    @pytest.mark.parametrize("below", ["", "search"])
    def test_one_that_cannot_be_written_is_refused(self, tmp_path, below):
        (tmp_path / "file").write_text("in the way")
        rule = r"`directory` must be a folder that can be written to\. Received: directory='.*file"
        with pytest.raises(tfkit.OutputPathError, match=rule):
            run(tmp_path / "file" / below)


@pytest.fixture(scope="module")
def finished_grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    run(folder, max_trials=1)
    return folder


class TestRefusedBuilds:
    def test_no_model(self, tmp_path):
        rule = r"`build` must return a compiled Keras 3 model\. Received: None of type builtins\.NoneType"
        with pytest.raises(tfkit.ArgumentTypeError, match=rule):
            run(tmp_path, lambda: None)

    def test_a_model_that_is_not_compiled(self, tmp_path):
        rule = (
            r"must return a compiled model.*Received: model='sequential.*not compiled\. Call model\.compile"
        )
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(tmp_path, dense_net)

    @pytest.mark.parametrize("wrap", [lambda sgd: sgd, keras.optimizers.LossScaleOptimizer])
    def test_an_optimizer_that_owns_a_schedule(self, tmp_path, wrap):
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
        rule = r"with a number as its learning rate.*Received: learning_rate=<.*Pass a float to the optimizer"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(tmp_path, lambda: one_weight(wrap(keras.optimizers.SGD(schedule))))

    @pytest.mark.parametrize("max_trials", [1, 3])
    def test_the_same_model_twice(self, tmp_path, max_trials):
        model = one_weight()
        rule = r"must make new weights each time.*Received: model=.*twice with the same .*kernel.*`build`"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(tmp_path, lambda: model, max_trials=max_trials, reuse=False)

    def test_a_model_that_trains_a_layer_of_the_last_one(self, tmp_path):
        shared = keras.layers.Dense(1, use_bias=False)

        def share():
            model = keras.Sequential([keras.Input((1,)), shared])
            model.compile("sgd", "mse", run_eagerly=True)
            return model

        with pytest.raises(tfkit.ArgumentError, match="`build` must make new weights each time"):
            run(tmp_path, share, reuse=False)

    @pytest.mark.parametrize("value", [None, "model", 3])
    def test_what_is_no_function(self, tmp_path, value):
        with pytest.raises(tfkit.ArgumentTypeError, match=r"`build` must be a function .*Received: build="):
            run(tmp_path, value)

    def test_a_model_in_place_of_a_function(self, tmp_path):
        with pytest.raises(
            (tfkit.ArgumentError, tfkit.ArgumentTypeError), match=r"`build` must .*Received: "
        ):
            run(tmp_path, one_weight())

    def test_a_function_of_two_arguments(self, tmp_path):
        rule = r"must take nothing or one argument, the hyperparameters\. Received: build=.* with 2 required"
        with pytest.raises(tfkit.ArgumentTypeError, match=rule):
            run(tmp_path, lambda hp, units: one_weight())


class TestRefusedArguments:
    def test_a_space_that_is_a_dictionary(self, tmp_path):
        rule = r"`space` must be a tfkit\.SearchSpace\. Received: space=\{.*Write SearchSpace\(learning_rate="
        with pytest.raises(tfkit.ArgumentTypeError, match=rule):
            run(tmp_path, space={"learning_rate": (0.1, 0.2)})

    def test_an_unknown_tuner(self, tmp_path):
        rule = r"`tuner` must be one of .*bayesian.*random.*grid.*Received: tuner='evolution'"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(tmp_path, tuner="evolution")

    @pytest.mark.parametrize("name", ["max_trials", "epochs"])
    @pytest.mark.parametrize("count", [0, -1, 1.5, True, None])
    def test_a_count_below_one(self, tmp_path, name, count):
        with pytest.raises(tfkit.ArgumentError, match=rf"`{name}` must be at least 1\. Received: {name}="):
            run(tmp_path, **{name: count})

    def test_an_objective_of_unknown_direction(self, tmp_path):
        rule = r"direction of `objective` must be known.*Received: objective='val_acuracy'.*\.Objective\("
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(tmp_path, objective="val_acuracy")

    def test_an_objective_that_training_does_not_report(self, tmp_path):
        rule = (
            r"`objective` must be a metric that training reports\. "
            r"Received: objective='val_accuracy'; the history has loss, val_loss"
        )
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(tmp_path, objective="val_accuracy")

    def test_a_validation_objective_without_validation_data(self, tmp_path):
        rule = (
            r"begins with 'val_' needs validation data\. Received: objective='val_loss', "
            r"validation_data=None, validation_split=0\.0\. Pass validation_data"
        )
        with pytest.raises(tfkit.ArgumentError, match=rule):
            run(tmp_path, validation_data=None)

    @pytest.mark.parametrize("split", [-0.5, 1.0, 1.5])
    def test_a_validation_split_outside_its_range(self, tmp_path, split):
        with pytest.raises(
            tfkit.ArgumentError, match=rf"`validation_split` .*Received: validation_split={split}"
        ):
            run(tmp_path, validation_data=None, validation_split=split)

    def test_a_misspelt_hyperparameter_that_nothing_can_read(self, tmp_path):
        with pytest.raises(tfkit.ArgumentError, match="lerning_rate"):
            run(tmp_path, space=SearchSpace(lerning_rate=(0.1, 0.2)))

    @pytest.mark.parametrize(
        "change",
        [
            {"tuner": "evolution"},
            {"objective": "val_acuracy"},
            {"validation_data": None},
            {"max_trials": 0},
        ],
        ids=str,
    )
    def test_leave_no_directory_behind(self, tmp_path, change):
        with pytest.raises(tfkit.ArgumentError):
            run(tmp_path / "new", **change)
        assert not (tmp_path / "new").exists()


class TestProgress:
    def lines(self, capsys):
        out = capsys.readouterr().err
        return [line for line in out.splitlines() if line.strip()]

    def test_is_one_line_of_trial_best_and_time_left(self, tmp_path, capsys):
        space = SearchSpace(learning_rate=[0.4, 0.1, 0.2])
        run(tmp_path, space=space, max_trials=3, verbose=1)
        (line,) = self.lines(capsys)
        assert "trial 3/3" in line
        assert "best val_loss 0.04" in line
        assert "left 0:00:00" in line

    def test_has_the_score_of_a_last_trial_that_is_the_best(self, tmp_path, capsys):
        run(tmp_path, verbose=1)
        assert "best val_loss 0.36" in self.lines(capsys)[-1]

    def test_of_a_finished_search_has_its_last_trial_and_best(self, tmp_path, capsys):
        space = SearchSpace(learning_rate=[0.4, 0.1])
        run(tmp_path, space=space)
        capsys.readouterr()
        run(tmp_path, space=space, verbose=1)
        (line,) = self.lines(capsys)
        assert "trial 2/2" in line
        assert "best val_loss 0.04" in line

    def test_of_a_continued_search_is_one_line(self, tmp_path, capsys):
        run(tmp_path, tuner="random", seed=1, max_trials=1)
        capsys.readouterr()
        run(tmp_path, tuner="random", seed=1, verbose=1)
        assert len(self.lines(capsys)) == 1

    @pytest.mark.parametrize("before", [0, 1])
    def test_can_be_turned_off(self, tmp_path, capsys, before):
        for _ in range(before):
            run(tmp_path, tuner="random", seed=1, max_trials=1)
        run(tmp_path, tuner="random", seed=1)
        assert self.lines(capsys) == []


@pytest.mark.parametrize(
    ("change", "error", "rule"),
    [
        (
            {"callbacks": None},
            tfkit.ArgumentTypeError,
            r"`callbacks` must be a list.*Received: callbacks=None",
        ),
        ({"callbacks": keras.callbacks.TerminateOnNaN()}, tfkit.ArgumentTypeError, "`callbacks` must be"),
        ({"seed": "a"}, tfkit.ArgumentTypeError, r"`seed` must be a whole number.*Received: seed='a'"),
        ({"x": (n for n in range(3))}, tfkit.ArgumentTypeError, "readable once for every trial.*Received"),
        ({"y": np.ones((3, 1))}, tfkit.ArgumentError, "must hold as many samples.*Received"),
    ],
    ids=["no callbacks", "one callback", "seed", "generator", "lengths"],
)
def test_what_every_trial_would_stumble_over_is_refused_before_the_first(tmp_path, change, error, rule):
    given = {"x": np.ones((4, 1)), "y": np.ones((4, 1)), "validation_split": 0.5} | change
    data = given.pop("x"), given.pop("y")
    with pytest.raises(error, match=rule):
        tfkit.search(
            one_weight,
            *data,
            space=SearchSpace(learning_rate=[0.1]),
            max_trials=1,
            epochs=1,
            directory=tmp_path / "search",
            **given,
        )
    assert not (tmp_path / "search").exists()


def test_a_dataset_with_targets_beside_it_is_refused(tmp_path):
    data = tf.data.Dataset.from_tensors((np.ones((4, 1)), np.ones((4, 1))))
    with pytest.raises(tfkit.ArgumentError, match=r"holds its own targets.*Received: a Dataset with y=given"):
        tfkit.search(
            one_weight,
            data,
            np.ones((4, 1)),
            space=SearchSpace(learning_rate=[0.1]),
            max_trials=1,
            epochs=1,
            objective="loss",
            directory=tmp_path,
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**32 - 1),
        ("batch_size", 0),
        ("batch_size", "a"),
        ("validation_split", "0.2"),
        ("chief", 9000),
        ("chief", "127.0.0.1:99999"),
        ("worker", "127.0.0.1:65536"),
    ],
)
def test_a_value_out_of_its_range(name, value, tmp_path):
    with pytest.raises(
        tfkit.ArgumentError, match=rf"`{name}` .*must .*Received: {name}={re.escape(repr(value))}"
    ):
        run(tmp_path, **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [lambda *, hp: one_weight(), lambda **hp: one_weight(), dict],
    ids=["keyword", "keywords", "class"],
)
def test_a_build_that_cannot_be_given_the_hyperparameters(wrong, tmp_path):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"`build` must .*Received: build="):
        run(tmp_path, wrong)


def test_a_seed_of_numpys(tmp_path):
    assert run(tmp_path, seed=np.int64(3)).table.status.tolist() == ["completed"] * 2


def test_a_directory_that_is_no_path():
    with pytest.raises(tfkit.ArgumentTypeError, match=r"`directory` must be a path\. Received: directory=3"):
        run(3)


def test_a_model_without_an_optimizer(tmp_path):
    def bare():
        model = one_weight()
        model.compile(None, "mse")
        return model

    with pytest.raises(tfkit.ArgumentError, match="compiled without one"):
        run(tmp_path, bare)
