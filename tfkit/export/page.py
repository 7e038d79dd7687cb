"""One visit of Chromium to a page of ours: what it is served, what it posts back, and its end."""

import contextlib
import dataclasses
import functools
import http.server
import json
import os
import pathlib
import queue
import re
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfkit.errors import ExportError

_PAGE = pathlib.Path(__file__).with_name("page.html")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm"}
_FLAGS = (
    "--headless",
    "--no-sandbox",  # root and containers have none to offer; the page is ours and reaches only us
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
)


@dataclasses.dataclass
class Site:
    """What the page may ask for, and what it has said.

    Attributes:
        folders: Folders to serve, by the first part of their files' addresses.
        job: What the page is to do, as JSON.
        models: The files to run.
        arrays: The samples, one array an input.
        lines: What the page wrote to its console, by number, for they may arrive in any order.
        events: The page's result, or None once it is gone.
        token: The folder that everything lies in, so that no other program can ask for it.
    """

    folders: Mapping[str, pathlib.Path]
    job: Mapping[str, Any]
    models: Sequence[pathlib.Path]
    arrays: Sequence[np.ndarray]
    lines: dict[int, str] = dataclasses.field(default_factory=dict)
    events: "queue.Queue[bytes | None]" = dataclasses.field(default_factory=queue.Queue)
    token: str = dataclasses.field(default_factory=secrets.token_urlsafe)

    @property
    def log(self) -> str:
        """The console's text."""
        return "\n".join(text for _, text in sorted(self.lines.items()))

    def answer(self, address: Sequence[str]) -> tuple[bytes, str] | None:
        """Returns the content of an address and its type; None if there is nothing."""
        match address:
            case [""]:
                return _PAGE.read_bytes(), _TYPES[".html"]
            case ["job.json"]:
                return json.dumps(self.job).encode(), "application/json"
            case ["model", number]:
                return self.models[int(number)].read_bytes(), "application/octet-stream"
            case ["input", number, dtype]:
                array = np.ascontiguousarray(self.arrays[int(number)], dtype)
                return array.tobytes(), "application/octet-stream"
            case [name, *parts] if name in self.folders:
                folder = self.folders[name].resolve()
                file = folder.joinpath(*parts).resolve()
                if file.is_relative_to(folder) and file.is_file():
                    return file.read_bytes(), _TYPES.get(file.suffix, "application/octet-stream")
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, *args: Any, site: Site):
        self.site = site  # the parent's constructor handles the request
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        """Keeps the requests out of stderr."""

    def _address(self) -> list[str]:
        token, *rest = self.path.lstrip("/").split("/")
        return rest if token == self.site.token else []

    def _reply(self, status: int, content: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        # an isolated page may read a clock of 5 instead of 100 microseconds
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        address = self._address()
        if address == ["alive"]:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # returns when the page closes the connection by its end
            self.site.events.put(None)
        elif found := self.site.answer(address):
            self._reply(200, *found)
        else:
            self._reply(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match self._address():
            case ["log", number]:
                self.site.lines[int(number)] = body.decode(errors="replace")
            case ["result"]:
                self.site.events.put(body)
        self._reply(204)


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of connections that break when the browser is killed."""


@contextlib.contextmanager
def _serving(site: Site) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, site=site))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{site.token}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _browsing(command: Sequence[str], stderr: Any) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True
        )
    except OSError as error:
        raise ExportError(
            f"The browser must be a program that starts. Received: program={command[0]!r} ({error}). "
            "Install it again."
        ) from error
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own, so its children too
        process.wait()


def visit(site: Site, program: pathlib.Path, flags: Sequence[str], time_limit_s: float) -> bytes:
    """Opens the site in a browser and returns what the page posts; the browser ends with it.

    Args:
        site: What to serve.
        program: Chromium.
        flags: Further flags for it.
        time_limit_s: Seconds until the visit counts as failed.

    Raises:
        ExportError: If the browser does not start or ends, the page crashes, or time is up.
    """
    deadline = time.monotonic() + time_limit_s
    with (
        tempfile.TemporaryDirectory(prefix="tfkit-browser-", ignore_cleanup_errors=True) as folder,
        open(pathlib.Path(folder, "stderr"), "w+b") as stderr,
        _serving(site) as url,
        _browsing([str(program), *_FLAGS, *flags, f"--user-data-dir={folder}", url], stderr) as process,
    ):
        while True:
            try:
                result = site.events.get(timeout=0.1)
            except queue.Empty:
                if process.poll() is None and time.monotonic() < deadline:
                    continue
            else:
                if result is not None:
                    return result
            raise _failure(site, process, program, time_limit_s, time.monotonic() >= deadline, stderr)


def _failure(
    site: Site, process: subprocess.Popen[bytes], program: pathlib.Path, limit: float, late: bool, stderr: Any
) -> ExportError:
    said = spoken(site.log)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0 if late else 0.5)  # a browser that ends takes its page along; which was it?
    if process.returncode is not None:
        stderr.seek(0)
        last = stderr.read().decode(errors="replace")[-1000:].strip()
        return ExportError(
            "The browser must run until its page has answered. "
            f"Received: program={str(program)!r}, which ended with code {process.returncode} ({last}). "
            "Install it again, or pass another `browser`."
        )
    if late:
        return ExportError(
            "The page must answer within the time limit. "
            f"Received: time_limit_s={limit}; its console says: {said}. Allow more, or do fewer runs."
        )
    return ExportError(
        "The page must live until the model has run. "
        f"Received: models={[str(path) for path in site.models]}, on which it crashed; its console says: "
        f"{said}. A model that needs more memory than a page may have does that."
    )


def spoken(log: str) -> str:
    """Returns the end of a console's text for a message, without what LiteRT tells of its progress."""
    lines = [line for line in log.splitlines() if not re.search(r"INFO|log: I\d|npu_registry", line)]
    return "\n".join(lines)[-1000:] or "nothing"
