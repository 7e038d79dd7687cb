"""Running `.tflite` files where the web runs them: LiteRT.js in a headless Chromium."""

import dataclasses
import json
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfkit.errors import ArgumentError, ExportError
from tfkit.export.page import Site, spoken, visit
from tfkit.export.runtime import kind_of
from tfkit.export.webtools import Browser, find_browser, missing_for_browser

Accelerator = Literal["wasm", "webgpu"]

_FLAGS = {
    "wasm": ("--disable-gpu",),
    # a GPU in software: slow, but it runs the same shaders on any machine
    "webgpu": ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
}
# V8 begins with code that is quickly made and slow, and replaces it while the clock runs: without this
# the median of 60 rounds of one MobileNetV2 was 13 ms where 9 are reached in the end
_SETTLED = "--js-flags=--no-liftoff"


@dataclasses.dataclass(frozen=True)
class BrowserRun:
    """What a model did in the browser.

    Attributes:
        outputs: One array for each output, ``(samples, …)``, in model order.
        milliseconds: How long each timed call took; empty without `runs`.
        accelerated: Whether the whole model ran on WebGPU, by LiteRT.js's own account; False
            if parts of it fell back, and for ``"wasm"``.
        log: What the page wrote to its console, a line a message, with the level in front.
    """

    outputs: list[np.ndarray]
    milliseconds: tuple[float, ...]
    accelerated: bool
    log: str


def run_in_browser(
    path: str | os.PathLike[str],
    arrays: Sequence[np.ndarray],
    *,
    accelerator: Accelerator = "wasm",
    runs: int = 0,
    time_limit_s: float = 120.0,
    browser: Browser | None = None,
) -> BrowserRun:
    """Runs a `.tflite` file on samples, as a web page does.

    Args:
        path: The file.
        arrays: One array for each input, ``(samples, …)``, in model order; cast to the
            inputs' types. They run in batches of the size that the file takes.
        accelerator: ``"wasm"``, one thread of the processor, or ``"webgpu"``, on a GPU
            emulated in software, which tells what a GPU computes but not how fast.
        runs: Timed calls on the first batch; a tenth of them, at least three, warm up before.
            One takes from the inputs in memory to the outputs in memory.
        time_limit_s: Seconds for everything, starting the browser included, above 0.
        browser: Where Chromium and LiteRT.js are; None looks for them.

    Returns:
        A `BrowserRun`.

    Raises:
        ArgumentError: If an argument is outside its range, or `path` is no `.tflite` file.
        ExportError: If the browser or LiteRT.js is missing or fails, the samples do not fit
            the inputs, LiteRT.js cannot compile or run the model, or time is up.

    Examples:
        >>> import pathlib, tempfile, numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4,), output_channels=1)
        >>> artifact = tfkit.export_tflite(model, pathlib.Path(tempfile.mkdtemp(), "model.tflite"))
        >>> x = np.ones((2, 8, 8, 3), "float32")
        >>> run = run_in_browser(artifact.path, [x], runs=5)
        >>> bool(np.allclose(run.outputs[0], artifact.predict(x), atol=1e-5)), len(run.milliseconds)
        (True, 5)
    """
    arrays = [np.asarray(array) for array in arrays]
    counts = {array.shape[:1] for array in arrays}
    if len(counts) != 1 or not all(
        array.ndim and array.size and array.dtype.kind in "biuf" for array in arrays
    ):
        raise ArgumentError(
            "`arrays` must hold one array of numbers an input, with at least one sample, as many in each. "
            f"Received: arrays of shape {[array.shape for array in arrays]}, "
            f"type {[str(array.dtype) for array in arrays]}."
        )
    return _visit([path], arrays, accelerator, runs, time_limit_s, browser)[0]


def time_in_browser(
    paths: Mapping[str, str | os.PathLike[str]],
    *,
    accelerator: Accelerator = "wasm",
    runs: int = 50,
    time_limit_s: float = 120.0,
    browser: Browser | None = None,
) -> dict[str, tuple[float, ...]]:
    """Times `.tflite` files against each other in one page, on zeros, round by round.

    Args:
        paths: The files by name.
        accelerator: As in `run_in_browser`.
        runs: Rounds that count, at least 1; each calls every file once.
        time_limit_s: As in `run_in_browser`.
        browser: As in `run_in_browser`.

    Returns:
        By name the milliseconds of each round, so that equal places were measured together.

    Raises:
        ArgumentError: As in `run_in_browser`, or if there is no file.
        ExportError: As in `run_in_browser`, or if a file does not run on WebGPU as a whole:
            its time would be that of a processor.

    Examples:
        >>> import pathlib, tempfile, tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4,), output_channels=1)
        >>> artifact = tfkit.export_tflite(model, pathlib.Path(tempfile.mkdtemp(), "model.tflite"))
        >>> times = time_in_browser({"one": artifact.path, "again": artifact.path}, runs=5)
        >>> [(name, len(each)) for name, each in times.items()]
        [('one', 5), ('again', 5)]
    """
    if not paths or not isinstance(runs, numbers.Integral) or runs < 1:
        raise ArgumentError(
            "There must be a file to time and a round to time it in. "
            f"Received: paths={dict(paths)!r}, runs={runs!r}."
        )
    done = _visit(list(paths.values()), None, accelerator, runs, time_limit_s, browser)
    slow = [name for name, run in zip(paths, done) if accelerator == "webgpu" and not run.accelerated]
    if slow:
        raise ExportError(
            "A time on WebGPU is told only of files that run there as a whole. "
            f"Received: paths with {', '.join(slow)}, of which LiteRT.js leaves parts to the processor. "
            "Export them without sparse encoding, or time them with accelerator='wasm'."
        )
    return {name: run.milliseconds for name, run in zip(paths, done, strict=True)}


def _visit(
    paths: Sequence[str | os.PathLike[str]],
    arrays: Sequence[np.ndarray] | None,
    accelerator: str,
    runs: int,
    time_limit_s: float,
    browser: Browser | None,
) -> list[BrowserRun]:
    """Runs files in one page; without arrays, on one batch of zeros each."""
    if accelerator not in _FLAGS:
        raise ArgumentError(
            f"`accelerator` must be one of {', '.join(_FLAGS)}. Received: accelerator={accelerator!r}."
        )
    if not isinstance(runs, numbers.Integral) or runs < 0 or not _is_positive(time_limit_s):
        raise ArgumentError(
            "`runs` must be a whole number from 0 and `time_limit_s` a time above 0. "
            f"Received: runs={runs!r}, time_limit_s={time_limit_s!r}."
        )
    models = [pathlib.Path(path) for path in paths]
    for model in models:
        if kind_of(model) != "tflite":
            raise ArgumentError(
                f"A browser runs .tflite files. Received: path={str(model)!r}, a SavedModel. "
                "Export it with export_tflite."
            )
    browser = browser or find_browser()
    if browser is None:
        raise ExportError(
            "Running a model in a browser needs Chromium and LiteRT.js. "
            f"Received: browser=None. {missing_for_browser()}"
        )
    shapes = None if arrays is None else [array.shape for array in arrays]
    job = {"accelerator": accelerator, "runs": int(runs), "models": len(models), "shapes": shapes}
    site = Site(browser.folders(), job, models, arrays or [])
    flags = (*_FLAGS[accelerator], _SETTLED) if runs else _FLAGS[accelerator]
    body = visit(site, browser.program, flags, time_limit_s)
    length = int.from_bytes(body[:4], "little")
    head, rest = json.loads(body[4 : 4 + length]), memoryview(body)[4 + length :]
    if "fault" in head:
        raise _refusal(head, job, models, browser.package, site.log)
    return _read(head["results"], rest, None if shapes is None else shapes[0][0], site.log)


def _is_positive(number: float) -> bool:
    return isinstance(number, numbers.Real) and number > 0


def _read(results: list[dict[str, Any]], rest: memoryview, count: int | None, log: str) -> list[BrowserRun]:
    """Returns what the page posted, cut back to the number of samples."""
    done = []
    for result in results:
        outputs = []
        for each in result["outputs"]:
            size = each["batches"] * int(np.prod(each["shape"]))
            flat = np.frombuffer(rest, each["dtype"], size)
            rest = rest[flat.nbytes :]
            outputs.append(flat.reshape(-1, *each["shape"][1:])[:count].copy())
        done.append(BrowserRun(outputs, tuple(result["milliseconds"]), result["accelerated"], log))
    return done


def _refusal(
    head: dict[str, str], job: dict[str, Any], models: list[pathlib.Path], package: pathlib.Path, log: str
) -> ExportError:
    """Returns what the page could not do as an error."""
    stage, _, number = head["stage"].partition(" ")
    if stage == "load":
        return ExportError(
            "LiteRT.js must load in the browser. "
            f"Received: package={str(package)!r} ({head['fault']}). Run npm install @litertjs/core again."
        )
    path = str(models[int(number)])
    if stage == "inputs":
        return ExportError(
            "An artifact runs in a browser on samples shaped like its inputs, whose sizes are fixed, one "
            f"array an input. Received: arrays of shape {job['shapes'] or 'its own'} for inputs of shape "
            f"{head['fault']}, path={path!r}."
        )
    return ExportError(
        f"LiteRT.js must be able to {stage} the artifact. Received: path={path!r}, "
        f"accelerator={job['accelerator']!r} ({head['fault'][:500]}); the console says: {spoken(log)}. "
        "Export it as dense float32 or float16, or run it on WebAssembly."
    )
