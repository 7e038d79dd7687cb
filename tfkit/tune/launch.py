"""A search over several processes: here, or on machines that share a directory."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import cloudpickle
import grpc

from tfkit.errors import ArgumentTypeError, SearchError
from tfkit.tune.bench import WrongCallError
from tfkit.tune.chief import Chief, Client
from tfkit.tune.job import Job, Progress, engine
from tfkit.tune.ledger import Ledger
from tfkit.tune.result import ENGINE

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
FINISHED = "finished"  # a file that tells late workers that there is nothing left
WRONG_CALL = 3  # exit code of a worker whose call was wrong
RESTARTS = 3  # of a worker that dies again and again without an epoch in between


def identity(job: Job) -> dict[str, Any]:
    """Returns what a chief and its workers must have in common."""
    versions = {name: metadata.version(name) for name in ("tfkit", "keras", "keras-tuner", "tensorflow")}
    return {
        "versions": versions,
        "space": job.space.describe(),
        "objective": job.objective.name,
        "tuner": job.tuner,
        "epochs": job.epochs,
    }


@contextlib.contextmanager
def chief_of(job: Job, folder: pathlib.Path, address: str) -> Iterator[Chief]:
    """Gives a chief that listens; it trains nothing itself."""
    if address.rpartition(":")[0] not in LOOPBACK:
        warnings.warn(
            f"The chief listens on {address}: its protocol knows neither passwords nor encryption, "
            "so only a network of your own should reach it.",
            stacklevel=2,
        )
    finished = folder / ENGINE / FINISHED
    finished.unlink(missing_ok=True)
    alone = dataclasses.replace(job, reuse=False, cache_frozen=False)
    with engine(alone, folder, lambda *_: None, "chief") as tuner:
        tuner.oracle.verbose = 0
        tuner.on_search_begin()
        tuner.oracle.save()
        with Chief(tuner.oracle, address, identity(job)) as chief:
            yield chief
            if chief.is_over:
                finished.touch()


def serve(job: Job, folder: pathlib.Path, address: str, progress: Progress) -> None:
    """Runs a chief until all trials are over, whoever works for it."""
    show = _Watch(job, folder, progress)
    with chief_of(job, folder, address) as chief:
        _say(f"The chief listens on {chief.address}.")
        while not chief.is_over:
            time.sleep(0.2)
            for worker in chief.release_silent():
                _say(f"{worker} has not been heard of; its trial waits for another worker.")
            show()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # standard output may be for a script to read


def work(job: Job, folder: pathlib.Path, address: str, worker: str) -> None:
    """Runs trials for a chief until there are none left.

    Raises:
        SearchError: If no chief answers, it runs another search, or it goes away.
    """
    import _thread

    gone = []

    def on_loss() -> None:
        gone.append(True)
        _thread.interrupt_main()

    is_over = (folder / ENGINE / FINISHED).exists
    try:
        client = Client(job.oracle(), address, worker, identity(job))
        with (
            client.heartbeat(on_loss, is_over),
            engine(job, folder, lambda *_: None, worker, client) as tuner,
        ):
            tuner.search()
    except (KeyboardInterrupt, grpc.RpcError) as loss:  # found out between two calls, or in one
        if isinstance(loss, KeyboardInterrupt) and not gone:
            raise
        if not is_over():
            raise SearchError(
                f"A worker needs its chief. Received: {address!r}, which does not answer any more. "
                "Start the chief again on the same directory, and then the workers."
            ) from None
    except SearchError:
        if not is_over():  # a worker that comes too late has nothing left to do
            raise


def run_workers(job: Job, folder: pathlib.Path, workers: int, progress: Progress) -> None:
    """Runs a chief and workers on this machine; workers that die are replaced.

    Raises:
        ArgumentTypeError: If the job cannot be given to another process.
        SearchError: If a worker dies again and again.
    """
    path = folder / ENGINE / "job.pkl"
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_bytes(cloudpickle.dumps(job))
    except Exception as error:
        raise ArgumentTypeError(
            "With several workers, `build`, the data and the callbacks must be such that another process can "
            f"have them. Received: something that cannot be pickled ({type(error).__name__}: {error}). "
            "Use arrays, make in `build` what belongs to a model, or write a job for `tfkit tune`."
        ) from error
    show = _Watch(job, folder, progress)
    with chief_of(job, folder, "127.0.0.1:0") as chief:
        crew = {f"tuner{n}": _Worker(path, f"tuner{n}", chief.address, n, workers) for n in range(workers)}
        try:
            while not chief.is_over:
                time.sleep(0.1)
                show()
                for name, worker in crew.items():
                    if worker.has_died and not chief.is_over:
                        chief.release(name)
                        worker.restart(show.epochs)
        finally:
            for worker in crew.values():
                worker.end()
            path.unlink(missing_ok=True)


class _Worker:
    """One worker process on its share of this machine."""

    def __init__(self, job: pathlib.Path, name: str, address: str, number: int, count: int):
        self._log = job.parent / f"{name}.log"
        self._command = [sys.executable, "-m", "tfkit.tune.worker", str(job), name, address]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **_share(number, count)}
        self._deaths = 0
        self._epochs = -1
        self._start()

    def _start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def has_died(self) -> bool:
        return self._process.poll() is not None

    def restart(self, epochs: int) -> None:
        """Starts it again, unless it was called wrongly or dies without getting anywhere."""
        code = self._process.returncode
        last = self._log.read_text(errors="replace")[-4000:]
        if code == WRONG_CALL:
            raise WrongCallError(last.rpartition("tfkit: ")[2].strip())
        self._deaths = self._deaths + 1 if epochs == self._epochs else 1
        self._epochs = epochs
        if self._deaths > RESTARTS:
            raise SearchError(
                "A worker must be able to train. "
                f"Received: one that died {self._deaths} times (exit {code}) without an epoch in between. "
                f"The end of {str(self._log)!r}:\n{last}"
            )
        self._start()

    def end(self) -> None:
        """Ends the process and waits for it."""
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)  # it has been told that there is nothing left
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def _share(number: int, count: int) -> dict[str, str]:
    """Returns the environment that leaves a worker its share of cores, and one GPU if there are any."""
    cores = sorted(os.sched_getaffinity(0))
    own = cores[number::count] or [cores[number % len(cores)]]
    share = {
        "TFKIT_CORES": ",".join(map(str, own)),
        "TF_NUM_INTRAOP_THREADS": str(len(own)),
        "TF_NUM_INTEROP_THREADS": str(len(own)),
        "OMP_NUM_THREADS": str(len(own)),
    }
    if devices := [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", _gpus()).split(",") if each]:
        share["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return share


def _gpus() -> str:
    return ",".join(path.name[6:] for path in sorted(pathlib.Path("/dev").glob("nvidia[0-9]*")))


class _Watch:
    """Shows how far the workers are, from their records."""

    def __init__(self, job: Job, folder: pathlib.Path, progress: Callable[[int, int, float | None], Any]):
        self._job, self._progress = job, progress
        self._ledger = Ledger(folder, job.objective.name, job.objective.direction)
        self._last = 0.0
        self.epochs = 0

    def __call__(self) -> None:
        if time.monotonic() - self._last < 0.5:
            return
        records = self._ledger.records()
        self.epochs = sum(max(map(len, each.history.values()), default=0) for each in records)
        over = sum(each.is_over for each in records)
        self._progress(min(over, self._job.max_trials - 1), 0, self._ledger.best)
        self._last = time.monotonic()
