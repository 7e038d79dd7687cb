"""The files that could ship to a target: made once, judged, and chosen among."""

import contextlib
import dataclasses
import functools
import pathlib
import reprlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError, ExportError
from tfkit.export.apart import EMULATOR_MISSING, emulator, has_avx
from tfkit.export.artifact import Artifact
from tfkit.export.benchmark import benchmark
from tfkit.export.browser import Accelerator, run_in_browser
from tfkit.export.deployment import convert_dense, gpu_row
from tfkit.export.operations import read_program, read_programs
from tfkit.export.parity import TOLERANCE, compare
from tfkit.export.saved_model import export_saved_model
from tfkit.export.sparse import make_sparse_ready
from tfkit.export.tflite import Precision, convert_model, export_tflite, has_zeros, prove
from tfkit.export.webtools import find_browser, missing_for_browser
from tfkit.export.xnnpack import Verdict, analyse

SERVER, DEVICE, WASM, WEBGPU = "TensorFlow", "LiteRT", "LiteRT.js on wasm", "LiteRT.js on WebGPU"
SPARSE = "sparse-float16"
# From this share of zeros on sparse kernels go before int8 (experiments/deploy_targets). On ARM with dot
# products that is where they take fewer instructions. In wasm they were ahead from 70% on where V8 had no
# dot products to use; where it has, 80% was measured to be as fast as int8.
FASTER_THAN_INT8 = {"mobile": 0.9, "web": 0.8}
SLOWER = 0.95  # the speed-up below which int8 is said to be slower than float32
BROWSER_SAMPLES = 2
Predict = Callable[[Any], Any]


class Passed(Exception):  # noqa: N818 - no error: the next candidate's turn
    """A candidate that is not shipped, and why."""


def _in_short(error: Exception) -> str:
    """Returns an error's text for the middle of a sentence: one line, not too long."""
    return textwrap.shorten(str(error), 600, placeholder=" …").rstrip(".")


def keras_predict(model: keras.Model) -> Predict:
    """Returns the model as `Artifact.predict` is: lists of arrays in, an array or a list of arrays out."""

    def predict(x: Any) -> Any:
        inputs = keras.tree.pack_sequence_as(graph.input_structure(model), keras.tree.flatten(x))
        outputs = keras.tree.flatten(model.predict(inputs, verbose=0))
        return outputs[0] if len(outputs) == 1 else outputs

    return predict


@dataclasses.dataclass
class Made:
    """A file that was made.

    Attributes:
        artifact: The artifact.
        score: What `evaluate` says; None without it.
        latency_ms: Median on this machine; None where it was not timed.
        speedup: Against dense float32, in the same run.
    """

    artifact: Artifact
    score: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None


@dataclasses.dataclass
class Maker:
    """Makes each candidate once and chooses among them."""

    model: keras.Model
    folder: pathlib.Path
    specs: list[tf.TensorSpec]
    arrays: list[np.ndarray]
    has_data: bool
    evaluate: Callable[[Predict], float] | None
    largest_drop: float
    preprocessing: Any
    batch_size: int | None
    input_shape: Sequence[int | None] | None
    accept_unproven: bool
    step: Callable[[str], None]
    made: dict[str, Made | str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    # --- choosing --------------------------------------------------------------------------------

    def choose(self, target: str) -> list[dict[str, Any]]:
        """Returns the rows of a target's report; a runtime that nothing passes for has a note instead.

        Raises:
            ExportError: If nothing passes for any of the target's runtimes.
        """
        rows, without = [], {}
        for runtime, candidates in self._tried(target).items():
            try:
                rows.append(self._first(target, runtime, candidates))
            except Passed as passed:
                without[runtime] = str(passed)
        if not rows:
            tried = "; ".join(f"on {runtime} {why}" for runtime, why in without.items())
            raise ExportError(
                "Something must pass for every target. "
                f"Received: model={self.model.name!r}, target={target!r}. Tried were {tried}."
            )
        for runtime, why in without.items():
            instead = f" Use {rows[0]['file']} there, on {rows[0]['runtime']}."
            self.notes.append(f"Nothing ships to {target} for {runtime}: {why}.{instead}")
        return rows

    def _tried(self, target: str) -> dict[str, list[tuple[str, str]]]:
        """Returns for each runtime of a target the candidates in order, each with what speaks for it."""
        server = [("saved_model", "servers, any batch size; TensorFlow's own GPU code")]
        dense = [
            (
                "float16",
                "half the size; GPUs compute in float16 or unpack it, and cannot read sparse weights",
            ),
            ("float32", "as exact as Keras"),
        ]
        if target == "desktop":
            int8 = "a quarter of the size, and about twice as fast as float32 on x86 with AVX-512 VNNI"
            device = [("int8", int8), ("float32", "as exact as Keras")]
            return {SERVER: server, DEVICE: device}
        if target == "gpu":
            return {SERVER: server, DEVICE: dense}
        if target == "mobile":
            return {DEVICE: self._for_processors(target)}
        return {WASM: self._for_processors(target), WEBGPU: dense}

    def _for_processors(self, target: str) -> list[tuple[str, str]]:
        zeros, least = self.sparse_form[1], FASTER_THAN_INT8[target]
        share = f"XNNPACK's sparse kernels take it, with {100 * zeros:.0f}% zeros in the 1x1 convolutions"
        sparse = [(SPARSE, share)] if zeros else []
        int8 = [("int8", "the fastest dense form on ARM and in wasm")]
        rest = [("float16", "half the size of float32 at its speed"), ("float32", "as exact as Keras")]
        return (sparse + int8 if round(zeros, 2) >= least else int8 + sparse) + rest

    def _first(self, target: str, runtime: str, candidates: list[tuple[str, str]]) -> dict[str, Any]:
        """Returns the row of the first candidate that passes.

        Raises:
            Passed: If none does.
        """
        passed = []
        for name, reason in candidates:
            try:
                made = self._get(name)
                proofs = self._in_browser(runtime, made.artifact)
            except Passed as why:
                passed.append(f"{name}: {why}")
                continue
            left = self._left_by_gpu(made.artifact) if (target, runtime) == ("gpu", DEVICE) else []
            reason = "; ".join([reason, *left, *(f"not {each}" for each in passed)])
            return self._row(target, runtime, name, made, reason, proofs)
        raise Passed("; ".join(passed))

    def _left_by_gpu(self, artifact: Artifact) -> list[str]:
        """Says what GPU delegates leave to the processor, if anything."""
        programs = read_programs(artifact.path.read_bytes())
        rows = [(each.kind, gpu_row(each)) for program in programs for each in program.operations]
        kinds = sorted({kind for kind, row in rows if row["runs"] == "cpu"})
        return [f"GPU delegates leave {', '.join(kinds)} to the processor"] if kinds else []

    def _row(
        self, target: str, runtime: str, name: str, made: Made, reason: str, proofs: Sequence[str] = ()
    ) -> dict[str, Any]:
        artifact = made.artifact
        return {
            "target": target,
            "runtime": runtime,
            "candidate": name,
            "file": artifact.path.name,
            "precision": artifact.precision,
            "sparse": artifact.sparse,
            "relative_error": artifact.parity.relative_error,
            "proofs": [*artifact.proofs, *proofs],
            "reason": reason,
        }

    # --- making ----------------------------------------------------------------------------------

    def _get(self, name: str) -> Made:
        """Returns a candidate, made at the first time.

        Raises:
            Passed: If it cannot be shipped.
        """
        if name not in self.made:
            self.step(name)
            try:
                self.made[name] = self._judged(self._make(name))
            except (Passed, ExportError) as why:
                self.made[name] = _in_short(why)
        made = self.made[name]
        if isinstance(made, str):
            raise Passed(made)
        return made

    def _make(self, name: str) -> Artifact:
        if name == "saved_model":
            return export_saved_model(
                self.model,
                self.folder / name,
                representative_data=self.arrays,
                preprocessing=self.preprocessing,
            )
        path = self.folder / f"model-{name}.tflite"
        if name == SPARSE:
            return self._make_sparse(path)
        if name == "int8" and not self.has_data:
            raise Passed("no representative data to learn the ranges from")
        return export_tflite(
            self.model,
            path,
            precision=cast(Precision, name),  # the other names went their own ways above
            representative_data=self.arrays,
            sparse=False,
            batch_size=self.batch_size,
            input_shape=self.input_shape,
        )

    def _make_sparse(self, path: pathlib.Path) -> Artifact:
        if has_avx() and emulator() is None:
            if not self.accept_unproven:
                raise Passed(f"it could not be proven. {EMULATOR_MISSING}")
            self.notes.append(
                f"NOT proven as without AVX, which was accepted: {path.name}. {EMULATOR_MISSING}"
            )
        path.write_bytes(convert_model(self.sparse_form[0], self.specs, "float16", [], sparse=True))
        parity, proofs = prove(self.model, path, self.arrays, "float16", sparse=True)
        return Artifact.at(path, "float16", parity, sparse=True, proofs=proofs)

    @functools.cached_property
    def sparse_form(self) -> tuple[keras.Model | None, float]:
        """The model as XNNPACK's sparse kernels take it, None if they do not; and its share of zeros."""
        if not has_zeros(self.model) or any(size is None for spec in self.specs for size in spec.shape):
            return None, 0.0
        self.step("sparse kernels")
        rewrites: tuple[Callable[[keras.Model], keras.Model], ...] = (
            lambda model: model,
            lambda model: make_sparse_ready(model, input_shape=self.input_shape),
        )
        for rewrite in rewrites:
            try:
                form = rewrite(self.model)
                found = analyse(read_program(convert_dense(form, self.input_shape)))
            except ExportError as error:
                self.notes.append(f"Not made ready for sparse kernels: {error}")
                break
            if found.verdict is Verdict.SPARSE:
                return form, found.zeros
        else:
            place, reason = found.stopper
            at = f" at {place.operation.name[:80]}" if place else ""
            self.notes.append(f"XNNPACK's sparse kernels do not take it{at}: {reason}.")
        return None, 0.0

    # --- judging ---------------------------------------------------------------------------------

    @functools.cached_property
    def keras_score(self) -> float | None:
        """What `evaluate` says of the model itself.

        Raises:
            ArgumentError: If that is no finite number.
        """
        score = self.score(keras_predict(self.model))
        if score is not None and not np.isfinite(score):
            raise ArgumentError(
                "`evaluate` must return a number, more being better. "
                f"Received: {score!r} of the Keras model itself."
            )
        return score

    def score(self, predict: Predict) -> float | None:
        """What `evaluate` says; None without it.

        Raises:
            ArgumentError: If that is no number.
        """
        if self.evaluate is None:
            return None
        score = self.evaluate(predict)
        try:
            return float(score)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                "`evaluate` must return a number, more being better. "
                f"Received: {reprlib.repr(score)} from evaluate."
            ) from error

    def _judged(self, artifact: Artifact) -> Made:
        score = self.score(artifact.predict)
        if score is None or (whole := self.keras_score) is None:
            return Made(artifact, score)
        if not whole - score <= self.largest_drop * abs(whole):
            raise Passed(
                f"its score is {score:.5g} against {whole:.5g}, and at most "
                f"{100 * self.largest_drop:g}% may be lost"
            )
        return Made(artifact, score)

    def _in_browser(self, runtime: str, artifact: Artifact) -> list[str]:
        """Runs what is for the web in Chromium, where there is one; returns the proof."""
        if runtime not in (WASM, WEBGPU):
            return []
        if find_browser() is None:
            note = f"Nothing was run in a browser. {missing_for_browser()}"
            self.notes += [note] if note not in self.notes else []
            return []
        self.step(f"{artifact.path.name} in the browser")
        accelerator: Accelerator = "wasm" if runtime == WASM else "webgpu"
        accelerated = []

        def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
            answer = run_in_browser(artifact.path, arrays, accelerator=accelerator)
            accelerated.append(answer.accelerated)
            return answer.outputs

        few = [each[:BROWSER_SAMPLES] for each in self.arrays]
        try:
            parity = compare(self.model, run, few, TOLERANCE[artifact.precision])
        except ExportError as error:
            raise Passed(f"it fails in the browser: {_in_short(error)}") from error
        if not parity.passed:
            raise Passed(f"in the browser it is off by {parity.relative_error:.2g} of the largest output")
        if accelerator == "webgpu" and not all(accelerated):
            raise Passed("parts of it fall back from the GPU to the processor")
        return [f"{runtime} in Chromium"]

    def time(self, runs: int) -> None:
        """Times what was made and dense float32 side by side."""
        if not runs:
            return
        with contextlib.suppress(Passed):
            self._get("float32")
        files = {
            name: each
            for name, each in self.made.items()
            if isinstance(each, Made) and each.artifact.kind == "tflite"
        }
        if not files:
            return
        try:
            table = benchmark({name: each.artifact for name, each in files.items()}, runs=runs)
        except ExportError as error:  # sizes that are open become 1, which some layers cannot take
            self.notes.append(f"Not timed: {error}")
            return
        latencies = dict(zip(table.name, table.latency_ms, strict=True))
        for name, each in files.items():
            each.latency_ms = float(latencies[name])
            each.speedup = float(latencies["float32"] / latencies[name]) if "float32" in latencies else None
        if "int8" in files and (files["int8"].speedup or 1) < SLOWER:
            self.notes.append(
                f"int8 is {files['int8'].speedup:.2f} times as fast as float32 on this machine: it pays on "
                "processors with dot products of int8 (AVX-512 VNNI on x86). Where yours have none, take "
                "float32 or float16 from export_tflite."
            )
