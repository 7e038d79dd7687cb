"""keras-tuner's chief and its workers: the same protocol, with workers that may die.

The protocol has neither authentication nor a sign of life. Here every call carries who
calls and what for, so that a worker of another search is told so, and one that falls
silent gives its trial back.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import keras_tuner
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.distribute.oracle_client import OracleClient
from keras_tuner.src.engine.oracle import synchronized

from tfkit.errors import ArgumentError, SearchError

IDENTITY, WORKER = "tfkit-search-bin", "tfkit-worker"  # keys of what every call carries
BEAT_SECONDS, LOST_SECONDS = 2.0, 60.0
PATIENCE_SECONDS = 25.0  # to wait for a chief
IDLE_SECONDS = 0.3


class Chief:
    """An oracle that workers ask for trials; a context in which it listens.

    Args:
        oracle: What proposes the trials.
        address: ``"HOST:PORT"``; port 0 takes a free one.
        identity: What a worker's search must be equal to, by name.

    Raises:
        ArgumentError: If the address cannot be listened on.
    """

    def __init__(self, oracle: keras_tuner.Oracle, address: str, identity: dict[str, Any]):
        self._oracle = oracle
        self._seen: dict[str, float] = {}
        self._servicer = _Servicer(oracle)
        gate = _Gate(identity, self._seen)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=32),
            interceptors=[gate],
            options=[("grpc.so_reuseport", 0)],  # or a second chief would share the port in silence
        )
        protos.get_service_grpc().add_OracleServicer_to_server(self._servicer, self._server)
        host = address.rpartition(":")[0]
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise ArgumentError(
                "A chief must be able to listen on its address. "
                f"Received: {address!r}, where it cannot: the port is in use, or it is not this machine. "
                f"Choose another port, such as '{host}:0' for any free one."
            )
        self.address = f"{host}:{self.port}"

    def __enter__(self) -> "Chief":
        self._server.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.stop(grace=1.0).wait()

    @property
    def is_over(self) -> bool:
        """Whether no trial is left, and none under way."""
        waiting = self._oracle.ongoing_trials or self._oracle._retry_queue
        return self._servicer.exhausted and not waiting

    def release(self, worker: str) -> None:
        """Gives the trial of a worker that is no more to the next one that asks."""
        _release(self._oracle, worker)

    def release_silent(self) -> list[str]:
        """Releases the trials of workers that have not been heard of; returns their names."""
        now = time.monotonic()
        silent = [
            worker
            for worker in list(self._oracle.ongoing_trials)
            if now - self._seen.get(worker, now) > LOST_SECONDS
        ]
        for worker in silent:
            self.release(worker)
        return silent


@synchronized
def _release(oracle: keras_tuner.Oracle, worker: str) -> None:
    trial = oracle.ongoing_trials.pop(worker, None)
    oracle.tuner_ids.discard(worker)
    if trial is not None:
        oracle._retry_queue.append(trial.trial_id)
        oracle.save()


class _Servicer(OracleServicer):
    """keras-tuner's, which lets workers wait as long as another's trial may come back."""

    def __init__(self, oracle: keras_tuner.Oracle):
        super().__init__(oracle)
        self.exhausted = False

    def CreateTrial(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        response = super().CreateTrial(request, context)
        status = protos.get_proto().TrialStatus
        if response.trial.status == status.STOPPED:
            self.exhausted = True
            if self.oracle.ongoing_trials:
                response.trial.status = status.IDLE
        if response.trial.status == status.IDLE:
            time.sleep(IDLE_SECONDS)  # keras-tuner's workers ask again at once
        return response


class _Gate(grpc.ServerInterceptor):
    """Lets in the workers of this very search, and notes when each was heard of."""

    def __init__(self, identity: dict[str, Any], seen: dict[str, float]):
        self._identity, self._seen = json.loads(json.dumps(identity)), seen

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        given = dict(details.invocation_metadata)
        other = json.loads(given.get(IDENTITY, b"{}"))
        differing = [
            f"{name}: {self._identity.get(name)!r} there, {other.get(name)!r} here"
            for name in self._identity
            if self._identity.get(name) != other.get(name)
        ]
        if differing:
            return grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "; ".join(differing))
            )
        self._seen[given.get(WORKER, "")] = time.monotonic()
        return continuation(details)


class Client(OracleClient):
    """A worker's way to its chief.

    Args:
        oracle: An oracle of the same search, for what need not be asked.
        address: The chief's ``"HOST:PORT"``.
        worker: The name of this process.
        identity: What the chief's search must be equal to.

    Raises:
        SearchError: If no chief answers there in time, or it runs another search.
    """

    def __init__(self, oracle: keras_tuner.Oracle, address: str, worker: str, identity: dict[str, Any]):
        self._oracle, self._address = oracle, address
        self.tuner_id, self.multi_worker, self.should_report = worker, False, True
        channel = grpc.insecure_channel(address)
        try:
            grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
        except grpc.FutureTimeoutError as error:
            channel.close()
            raise SearchError(
                "A worker needs a chief to ask for trials. "
                f"Received: {address!r}, where none answered for {PATIENCE_SECONDS:.0f} seconds. "
                "Start the chief first, on an address that this machine can reach."
            ) from error
        self.stub = protos.get_service_grpc().OracleStub(
            grpc.intercept_channel(channel, _Signature(worker, identity))
        )
        try:
            self.get_space()
        except grpc.RpcError as error:
            raise SearchError(
                "A worker must run the search of its chief, in the same versions. "
                f"Received: {address!r}, which differs in {error.details()}. "
                "Start both with the same job and the same installation."
            ) from error

    @contextlib.contextmanager
    def heartbeat(self, on_loss: Callable[[], None], is_over: Callable[[], bool]) -> Iterator[None]:
        """Lets the chief hear of this worker, and calls `on_loss` once it is gone for good.

        Args:
            on_loss: Called in a thread of its own.
            is_over: Tells whether a chief that does not answer has done its work.
        """
        over = threading.Event()

        def beat() -> None:
            last = time.monotonic()
            while not over.wait(BEAT_SECONDS):
                try:
                    request = protos.get_service().GetSpaceRequest()
                    self.stub.GetSpace(request, timeout=BEAT_SECONDS)
                    last = time.monotonic()
                except grpc.RpcError:
                    if is_over() or time.monotonic() - last > PATIENCE_SECONDS:
                        on_loss()
                        return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class _Signature(grpc.UnaryUnaryClientInterceptor):
    """Adds to every call who makes it and what for."""

    def __init__(self, worker: str, identity: dict[str, Any]):
        self._metadata = [(WORKER, worker), (IDENTITY, json.dumps(identity).encode())]

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        signed = _Details(details.method, details.timeout, self._metadata, details.wait_for_ready)
        return continuation(signed, request)


class _Details(grpc.ClientCallDetails):
    def __init__(
        self, method: str, timeout: float | None, metadata: list[tuple[str, Any]], wait_for_ready: bool | None
    ):
        self.method, self.timeout, self.metadata = method, timeout, metadata
        self.wait_for_ready, self.credentials, self.compression = wait_for_ready, None, None
