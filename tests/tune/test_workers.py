"""Several processes: each fault that is named here is really caused, and every process ended by its id."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkit
from tests.tune.test_search import ONES, one_weight, run, score
from tfkit import SearchResult, SearchSpace
from tfkit.tune import chief as chiefs
from tfkit.tune import launch
from tfkit.tune.job import Job

ROOT = pathlib.Path(__file__).parents[2]
RATES = [0.1, 0.15, 0.2, 0.3]
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
pytestmark = pytest.mark.slow


class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        time.sleep(0.3)


def build():
    return one_weight()


def search(folder, build=build, **options):
    settings = {"space": SearchSpace(learning_rate=RATES), "max_trials": 4, "epochs": 5, "workers": 2}
    return run(folder, build, **{**settings, **options})


def processes(folder):
    """Ids of the workers of a search, by name."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if "tfkit.tune.worker" in words and any(str(folder) in word for word in words):
                found[words[-3]] = int(path.parent.name)
    return found


def when(ready, seconds=60):
    """Waits until `ready()` gives something, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.1)
    raise AssertionError("it never came to that")


def under_way(folder, epochs=2):
    """The number and the worker of a trial that has done some epochs and is not over."""
    if not (folder / "search.json").is_file():
        return None
    table = SearchResult.load(folder).table
    rows = table[(table.status == "running") & (table.epochs >= epochs)]
    return (int(rows.trial.iloc[0]), rows.worker.iloc[0]) if len(rows) else None


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """A search of which one worker was killed amid a trial: result, the trial, the worker, seconds since."""
    folder, facts = tmp_path_factory.mktemp("survived"), {}

    def kill():
        facts["trial"], facts["worker"] = when(lambda: under_way(folder))
        os.kill(processes(folder)[facts["worker"]], signal.SIGKILL)
        facts["at"] = time.monotonic()

    thread = threading.Thread(target=kill)
    thread.start()
    result = search(folder, callbacks=[Slow()])
    thread.join()
    return result, facts, time.monotonic() - facts["at"]


class TestKilledWorker:
    def test_all_trials_complete_under_their_numbers(self, survived):
        table = survived[0].table
        assert table.status.tolist() == ["completed"] * 4
        assert table.trial.tolist() == [0, 1, 2, 3]
        assert table.learning_rate.tolist() == RATES

    def test_the_interrupted_trial_goes_on_after_its_last_epoch(self, survived):
        result, facts, _ = survived
        assert result.table.epochs.tolist() == [5] * 4
        expected = [(1 - 2 * RATES[facts["trial"]]) ** (2 * epoch) for epoch in range(1, 6)]
        history = result.history[result.history.trial == facts["trial"]]
        np.testing.assert_allclose(history.val_loss, expected, rtol=1e-4)

    def test_it_takes_less_than_a_minute(self, survived):
        assert survived[2] < 60

    def test_the_scores_and_the_best_model_are_right(self, survived):
        np.testing.assert_allclose(survived[0].table.score, [score(rate, 5) for rate in RATES], rtol=1e-4)
        loss = survived[0].best_model().evaluate(ONES, ONES, verbose=0)
        assert loss == pytest.approx(score(0.3, 5), rel=1e-3)

    def test_no_process_is_left(self, survived):
        assert processes(survived[0].directory) == {}


SCRIPT = """
import sys
from tests.tune.test_workers import Slow, search
search(sys.argv[1], callbacks=[Slow()])
"""


def test_all_killed_and_started_again(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT)

    def one_is_done():
        done = [json.loads(path.read_text())["status"] for path in tmp_path.glob("trials/*.json")]
        return "completed" in done and under_way(tmp_path)

    when(one_is_done)
    for each in [process.pid, *processes(tmp_path).values()]:
        os.kill(each, signal.SIGKILL)
    process.wait(30)
    then = SearchResult.load(tmp_path).table
    finished = then[then.status == "completed"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, timeout=120, check=False)
    assert done.returncode == 0
    table = SearchResult.load(tmp_path).table
    assert table.status.tolist() == ["completed"] * 4
    assert table.seconds[finished.trial].tolist() == finished.seconds.tolist()
    np.testing.assert_allclose(table.score, [score(rate, 5) for rate in RATES], rtol=1e-4)


def test_workers_end_when_their_chief_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, env=ENVIRONMENT)
    when(lambda: under_way(tmp_path))
    workers = processes(tmp_path)
    process.kill()
    process.wait(30)
    try:
        when(lambda: not processes(tmp_path), 40)  # half a minute, and what a busy machine adds
    finally:
        for each in workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
    logs = [path.read_text() for path in (tmp_path / "keras_tuner").glob("*.log")]
    assert any("which does not answer any more" in log for log in logs)


def broken():
    if "TFKIT_CORES" in os.environ:
        raise RuntimeError("boom in a worker")
    return one_weight()


def deadly():
    if "TFKIT_CORES" in os.environ:
        os._exit(7)
    return one_weight()


def test_a_search_of_which_all_trials_fail_ends_with_the_traceback(tmp_path):
    start = time.monotonic()
    with pytest.raises(tfkit.SearchError, match=r"(?s)all failed.*RuntimeError: boom in a worker"):
        search(tmp_path, broken, reuse=False)
    assert time.monotonic() - start < 60
    assert processes(tmp_path) == {}


def test_a_worker_that_cannot_live_is_given_up(tmp_path):
    with pytest.raises(tfkit.SearchError, match=r"died 4 times \(exit 7\) without an epoch in between"):
        search(tmp_path, deadly)
    assert processes(tmp_path) == {}


def test_a_trial_that_is_no_number_fails_alone(tmp_path):
    space = SearchSpace(learning_rate=[0.1, 1e30, 0.2])
    table = search(tmp_path, space=space, max_trials=3, epochs=2).table
    assert table.status.tolist() == ["completed", "failed", "completed"]
    assert "never a finite number" in table.error[1]


def test_each_worker_has_its_share_of_the_cores(tmp_path):
    def cores():
        (tmp_path / f"{os.getpid()}.cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
        return one_weight()

    search(tmp_path, cores, epochs=1)
    shares = [json.loads(path.read_text()) for path in tmp_path.glob("*.cores")]
    own = sorted(os.sched_getaffinity(0))
    given = [core for share in shares if share != own for core in share]
    assert sorted(given) in (own, sorted(own * 2))


# --- what is refused, and how soon ---------------------------------------------------------------------


def job(**options):
    import keras_tuner

    settings = {
        "build": build,
        "takes_hp": False,
        "space": SearchSpace(learning_rate=RATES),
        "fit": {"x": ONES, "y": ONES, "verbose": 0},
        "tuner": "grid",
        "objective": keras_tuner.Objective("loss", "min"),
        "max_trials": 1,
        "epochs": 1,
    }
    return Job(**{**settings, **options})


@pytest.fixture
def chief(tmp_path):
    with launch.chief_of(job(), tmp_path, "127.0.0.1:0") as made:
        yield made


def test_a_port_that_is_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        rule = rf"must be able to listen.*Received: '{address}', where it cannot: the port is in use"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            search(tmp_path, workers=1, chief=address)


def test_two_chiefs_at_one_address(chief, tmp_path):
    with pytest.raises(tfkit.ArgumentError, match="the port is in use"):
        search(tmp_path / "other", workers=1, chief=chief.address)


def test_a_chief_that_never_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(chiefs, "PATIENCE_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    rule = rf"needs a chief.*Received: '{address}', where none answered for 1 seconds"
    with pytest.raises(tfkit.SearchError, match=rule):
        search(tmp_path, workers=1, worker=address)


def test_a_worker_that_comes_when_all_is_done_has_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(chiefs, "PATIENCE_SECONDS", 1.0)
    search(tmp_path, workers=1, max_trials=1)
    with launch.chief_of(job(), tmp_path, "127.0.0.1:0") as chief:
        chief._servicer.exhausted = True
    result = search(tmp_path, workers=1, max_trials=1, worker=chief.address)
    assert result.table.status.tolist() == ["completed"]


def test_the_pages_tell_how_long_a_worker_waits_for_a_chief():
    wait = f"{chiefs.PATIENCE_SECONDS:.0f} seconds"
    assert f"it waits {wait}" in (ROOT / "docs" / "guide-machines.md").read_text()
    assert f"Workers wait {wait}" in (ROOT / "docs" / "troubleshooting.md").read_text()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"space": SearchSpace(learning_rate=[0.5])}, r"space: .*0\.1.* there, .*0\.5.* here"),
        ({"epochs": 3}, "epochs: 1 there, 3 here"),
        ({"tuner": "random"}, "tuner: 'grid' there, 'random' here"),
    ],
    ids=["space", "epochs", "tuner"],
)
def test_a_worker_of_another_search(options, difference, chief, tmp_path):
    with pytest.raises(tfkit.SearchError, match=f"must run the search of its chief.*differs in {difference}"):
        launch.work(job(**options), tmp_path, chief.address, "other")


def test_a_worker_of_another_version(chief, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.metadata, "version", lambda name: "0.0")
    with pytest.raises(tfkit.SearchError, match=r"differs in versions: .* there, .*'tfkit': '0\.0'.* here"):
        launch.work(job(), tmp_path, chief.address, "old")


def test_a_worker_that_falls_silent_gives_its_trial_back(chief, monkeypatch):
    client = chiefs.Client(job().oracle(), chief.address, "silent", launch.identity(job()))
    trial = client.create_trial("silent")
    assert chief.release_silent() == []
    monkeypatch.setattr(chiefs, "LOST_SECONDS", 0.2)
    time.sleep(0.5)
    assert chief.release_silent() == ["silent"]
    other = chiefs.Client(job().oracle(), chief.address, "other", launch.identity(job()))
    assert other.create_trial("other").trial_id == trial.trial_id


def test_a_beating_worker_is_not_silent(chief, monkeypatch):
    monkeypatch.setattr(chiefs, "BEAT_SECONDS", 0.1)
    client = chiefs.Client(job().oracle(), chief.address, "busy", launch.identity(job()))
    client.create_trial("busy")
    with client.heartbeat(lambda: None, lambda: False):
        monkeypatch.setattr(chiefs, "LOST_SECONDS", 0.8)
        time.sleep(1.5)
        assert chief.release_silent() == []


def test_idle_workers_wait_while_another_trains(chief):
    first, second = (
        chiefs.Client(job().oracle(), chief.address, name, launch.identity(job())) for name in ("a", "b")
    )
    trial = first.create_trial("a")
    assert second.create_trial("b").status == "IDLE"
    first.update_trial(trial.trial_id, {"loss": 1.0})
    trial.status = "COMPLETED"
    first.end_trial(trial)
    assert second.create_trial("b").status == "STOPPED"
    assert chief.is_over


@pytest.mark.parametrize("over", [True, False], ids=["all is done", "trials are left"])
def test_a_chief_that_stops_in_the_middle_of_a_call(over, tmp_path, monkeypatch):
    monkeypatch.setattr(chiefs, "IDLE_SECONDS", 30.0)  # the chief keeps the worker waiting, and is cut off
    with contextlib.ExitStack() as stack:
        chief = stack.enter_context(launch.chief_of(job(), tmp_path, "127.0.0.1:0"))
        busy = chiefs.Client(job().oracle(), chief.address, "busy", launch.identity(job()))
        busy.create_trial("busy")
        if over:
            (tmp_path / launch.ENGINE / launch.FINISHED).touch()
        stop = threading.Timer(1.0, chief._server.stop, (0.0,))
        stop.start()
        stack.callback(stop.join)
        if over:
            launch.work(job(), tmp_path, chief.address, "waiting")
        else:
            with pytest.raises(tfkit.SearchError, match=r"needs its chief.*Received: .*does not answer"):
                launch.work(job(), tmp_path, chief.address, "waiting")


def test_an_address_beyond_this_machine_is_warned_of(tmp_path, monkeypatch):
    silent = contextlib.nullcontext(types.SimpleNamespace(is_over=False))
    monkeypatch.setattr(launch, "Chief", lambda *_: silent)  # nothing is opened here
    with (
        pytest.warns(UserWarning, match=r"listens on 10\.0\.0\.1:9000: its protocol knows neither passwords"),
        launch.chief_of(job(), tmp_path, "10.0.0.1:9000"),
    ):
        pass


def test_data_that_no_other_process_can_have(tmp_path):
    data = tf.data.Dataset.from_tensor_slices((ONES, ONES)).batch(2)
    rule = r"another process can have them\. Received: something that cannot be pickled"
    with pytest.raises(tfkit.ArgumentTypeError, match=rule):
        tfkit.search(
            build,
            data,
            space=SearchSpace(learning_rate=RATES),
            validation_data=data,
            max_trials=1,
            epochs=1,
            workers=2,
            directory=tmp_path,
            verbose=0,
        )


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_a_number_of_workers_that_is_none(value, tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"`workers` must be at least 1\. Received: workers="):
        search(tmp_path, workers=value)


def test_two_places_at_once(tmp_path):
    rule = r"is a chief, or a worker, or starts.*Received: workers=2, chief='127\.0\.0\.1:1', worker=None"
    with pytest.raises(tfkit.ArgumentError, match=rule):
        search(tmp_path, chief="127.0.0.1:1")


def test_a_worker_that_would_delete(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match="A worker must not delete what its chief keeps"):
        search(tmp_path, workers=1, worker="127.0.0.1:1", overwrite=True)


@pytest.mark.parametrize("address", ["here", "127.0.0.1", ":9000", "a b:1", "127.0.0.1:port"])
def test_an_address_that_is_none(address, tmp_path):
    for name in ("chief", "worker"):
        with pytest.raises(tfkit.ArgumentError, match=rf"`{name}` must be an address such as"):
            search(tmp_path, workers=1, **{name: address})


def test_a_strategy_for_several_processes(tmp_path):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with pytest.raises(tfkit.ArgumentError, match="A strategy belongs to one process"):
        search(tmp_path, distribution_strategy=strategy)
