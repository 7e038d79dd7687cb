"""Which proofs this machine can run: each is tried, on a model of a few weights."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np

from tfkit.errors import TfkitError
from tfkit.export.apart import EMULATOR_MISSING, emulator, has_avx, run_apart
from tfkit.export.browser import Accelerator, run_in_browser
from tfkit.export.saved_model import export_saved_model
from tfkit.export.tflite import export_tflite
from tfkit.export.webtools import find_browser, missing_for_browser

_SHAPE = (4, 4, 3)


@dataclasses.dataclass(frozen=True)
class Check:
    """What became of one proof.

    Attributes:
        proof: Where an artifact is run.
        passed: Whether that works here.
        detail: What was found.
        remedy: How to get what is missing; empty if nothing is.
    """

    proof: str
    passed: bool
    detail: str
    remedy: str = ""


def check_machine() -> Iterator[Check]:
    """Tries every proof that an export runs, and tells how to get what is missing.

    Nothing is believed because a program is there: a small model is exported, run on LiteRT and
    TensorFlow, under qemu as on a processor without AVX, and in headless Chromium. It takes about
    half a minute.

    Yields:
        A `Check` for each proof, as soon as it is known.

    Examples:
        >>> from tfkit.export.machine import check_machine
        >>> next(check_machine())
        Check(proof='LiteRT', passed=True, detail='a small model ran and agreed with Keras', remedy='')
    """
    model = keras.Sequential([keras.Input(_SHAPE), keras.layers.Conv2D(2, 1, name="mix")])
    with tempfile.TemporaryDirectory(prefix="tfkit-machine-") as name:
        path = pathlib.Path(name, "model.tflite")
        agreed = "a small model ran and agreed with Keras"
        install = "Install tfkit again with its dependencies: pip install --force-reinstall tfkit."
        yield _tried("LiteRT", lambda: _said(export_tflite(model, path), agreed), install)
        yield _tried(
            "TensorFlow", lambda: _said(export_saved_model(model, pathlib.Path(name, "m")), agreed), install
        )
        if not path.is_file():
            why = "not tried, for LiteRT does not work"
            for proof in ("without AVX", "Chromium, wasm", "Chromium, WebGPU"):
                yield Check(proof, False, why, install)
            return
        expected = np.asarray(model(np.ones((1, *_SHAPE), "float32")))
        if has_avx() and emulator() is None:
            yield Check("without AVX", False, "there is no emulator", EMULATOR_MISSING)
        else:
            remedy = "Install qemu-user again, or a newer one."
            yield _tried("without AVX", lambda: _without_avx(path, expected), remedy)
        lacking = missing_for_browser()
        browsing: dict[str, Accelerator] = {"Chromium, wasm": "wasm", "Chromium, WebGPU": "webgpu"}
        for proof, accelerator in browsing.items():
            if lacking:
                yield Check(proof, False, "something that it takes is not there", lacking)
                continue
            remedy = "Try chromium --headless by hand; containers may need more shared memory."
            yield _tried(proof, functools.partial(_in_browser, path, expected, accelerator), remedy)


def _tried(proof: str, call: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(proof, True, call())
    except (TfkitError, OSError) as error:
        return Check(proof, False, " ".join(str(error).split()), remedy)


def _said(_: object, words: str) -> str:
    return words


def _without_avx(path: pathlib.Path, expected: np.ndarray) -> str:
    (got,) = run_apart(path, [np.ones((1, *_SHAPE), "float32")], processor="no-avx")
    _require_equal(got, expected)
    if has_avx():
        return f"a small model ran under {emulator()} and agreed with Keras"
    return "this processor has no AVX itself, so files run as they are"


def _in_browser(path: pathlib.Path, expected: np.ndarray, accelerator: Accelerator) -> str:
    answer = run_in_browser(path, [np.ones((1, *_SHAPE), "float32")], accelerator=accelerator)
    _require_equal(answer.outputs[0], expected)
    if accelerator == "webgpu" and not answer.accelerated:
        raise OSError("WebGPU could not be used; LiteRT.js fell back to the processor.")
    found = find_browser()
    return f"a small model ran in {found and found.program} and agreed with Keras"


def _require_equal(got: np.ndarray, expected: np.ndarray) -> None:
    if not np.allclose(got, expected, rtol=1e-3, atol=1e-3):  # a GPU may compute in float16
        raise OSError(f"A small model came out as {got.ravel()[:4]}, not as {expected.ravel()[:4]}.")
