"""The right artifact for each target, proven before it ships."""

import numbers
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError, OutputPathError
from tfkit.export.apart import has_avx
from tfkit.export.candidates import Made, Maker, Predict, keras_predict
from tfkit.export.deployment import TARGETS, require_target
from tfkit.export.layer_error import layer_errors
from tfkit.export.manifest import ExportReport, foreign_files, write_manifest
from tfkit.export.parity import remembering
from tfkit.export.signature import input_specs, random_samples, require_range, require_varied, samples
from tfkit.export.tflite import has_zeros
from tfkit.export.zeros import zeros_kept
from tfkit.files import remove_leftovers, staged, writable
from tfkit.report import progress
from tfkit.report.measure import disk_bytes, gzip_bytes

LAYERS = "int8_layers.csv"
INT8_SAMPLES = 16


def export(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    targets: Sequence[str] = TARGETS,
    representative_data: Any = None,
    evaluate: Callable[[Predict], float] | None = None,
    largest_drop: float = 0.01,
    baseline: keras.Model | None = None,
    preprocessing: Any = None,
    batch_size: int | None = 1,
    input_shape: Sequence[int | None] | None = None,
    accept_unproven: bool = False,
    overwrite: bool = False,
    runs: int = 20,
    verbose: int = 1,
) -> ExportReport:
    """Writes for each target what runs best there, once it is proven, and a report that says why.

    ==========  ====================  ============================================================
    target      runtime               what is tried, in this order
    ==========  ====================  ============================================================
    desktop     TensorFlow            a SavedModel
    desktop     LiteRT                int8, float32
    gpu         TensorFlow            a SavedModel
    gpu         LiteRT                float16, float32; never sparse-encoded
    mobile      LiteRT                int8, sparse float16 (first from 90% zeros on), float16, float32
    web         LiteRT.js on wasm     int8, sparse float16 (first from 80% zeros on), float16, float32
    web         LiteRT.js on WebGPU   float16, float32; never sparse-encoded
    ==========  ====================  ============================================================

    int8 needs `representative_data`; weights in eight bits with arithmetic in floats picked at run
    time ("dynamic range") are never chosen. What does not compute what Keras computes, or loses more
    than `largest_drop`, is passed over, and the report says so. Every `.tflite` file runs in a process
    of its own; a sparse one also as on a processor without AVX, and what is for the web in headless
    Chromium where that is installed. The folder gets its name when all is done.

    Args:
        model: A built Keras model, pruned or not; stripped of pruning.
        directory: The folder to make, with the artifacts, `manifest.json`, `report.html` and, if int8
            ships, `int8_layers.csv`, which tells where its error arises (`quantization_error`).
        targets: Any of ``"desktop"``, ``"gpu"``, ``"mobile"``, ``"web"``.
        representative_data: Inputs as the device will see them: an array, a list or a dict of arrays
            (one an input) or a tf.data.Dataset in batches; up to 128 samples. For int8's ranges, and
            for the proofs.
        evaluate: Judges by the task's metric: ``evaluate(predict) -> number``, more is better, where
            ``predict(x)`` takes an array, or a list of them, and returns what the model or the
            artifact puts out: an array, or a list of them, in Keras's order.
        largest_drop: How much of Keras's score an artifact may lose, as a fraction of it.
        baseline: The model before it was pruned, to be shown beside it.
        preprocessing: For the SavedModel's signature ``raw``, see `export_saved_model`.
        batch_size: Samples a call of a `.tflite` file; None leaves it open, but not for the web.
        input_shape: ``(height, width, channels)`` for a model that leaves sizes open; None in it
            leaves a size open in the files, too, but not for the web.
        accept_unproven: Ship sparse-encoded files also where qemu is missing to prove them.
        overwrite: Replace what an earlier export wrote to the folder.
        runs: Rounds of the timing on this machine; 0 for none.
        verbose: 1 shows progress.

    Returns:
        An `ExportReport`.

    Raises:
        ArgumentTypeError: If `model` is no model, or `evaluate` cannot be called.
        ArgumentError: If a target is unknown, or the data does not fit the model in shape or range.
        UnbuiltModelError: If the model has no weights, or does not know its inputs.
        NonFiniteWeightsError: If a weight is NaN or infinite.
        OutputPathError: If the folder exists and `overwrite` is False, or is none of ours, or
            cannot be written.
        ExportError: If nothing that is tried for a target can be shipped. A target that has two
            runtimes does with one; the report's notes tell what the other lacks.

    Examples:
        >>> import pathlib, tempfile, numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> report = tfkit.export(model, pathlib.Path(tempfile.mkdtemp(), "out"), targets=("gpu",), verbose=0)
        >>> report.table.file.tolist()
        ['saved_model', 'model-float16.tflite']
    """
    targets = [targets] if isinstance(targets, str) else targets
    chosen = list(dict.fromkeys(map(require_target, targets))) if isinstance(targets, Iterable) else []
    if not chosen:
        raise ArgumentError(
            f"`targets` must name at least one of {', '.join(TARGETS)}. Received: {targets!r}."
        )
    if evaluate is not None and not callable(evaluate):
        raise ArgumentTypeError(f"`evaluate` must be a function. Received: evaluate={evaluate!r}.")
    if not isinstance(largest_drop, numbers.Real) or not 0 <= largest_drop < 1:
        raise ArgumentError(f"`largest_drop` must lie in [0, 1). Received: largest_drop={largest_drop!r}.")
    if not isinstance(runs, numbers.Integral) or runs < 0:
        raise ArgumentError(f"`runs` must be a whole number from 0. Received: runs={runs!r}.")
    for each in [model] if baseline is None else [model, baseline]:
        graph.require_finite(graph.require_model(each))
    specs = input_specs(model, batch_size=batch_size, input_shape=input_shape)
    _require_fixed(chosen, specs)
    arrays = random_samples(specs)
    if representative_data is not None:
        arrays = samples(representative_data, specs, model=model)
        require_range(model, arrays)
        require_varied(arrays)
    directory = _new_folder(directory, overwrite)
    with progress.working("export", verbose=verbose) as show, staged(directory) as folder, remembering():
        aside = folder.with_name(f"{folder.name}.made")  # it goes with `folder`, also after a kill
        for each in (folder, aside):
            each.mkdir()
        maker = Maker(
            model=model,
            folder=aside,
            specs=specs,
            arrays=arrays,
            has_data=representative_data is not None,
            evaluate=evaluate,
            largest_drop=largest_drop,
            preprocessing=preprocessing,
            batch_size=batch_size,
            input_shape=input_shape,
            accept_unproven=accept_unproven,
            step=lambda text: show(f"export: {text}"),
        )
        maker.step("Keras")
        maker.keras_score  # noqa: B018 - a judge that is at fault shall fail before the work
        rows = [row for target in chosen for row in maker.choose(target)]
        maker.step("timing")
        maker.time(runs)
        _finish(maker, rows, folder, baseline)
    return ExportReport.load(directory)


def _require_fixed(targets: Sequence[str], specs: Sequence[tf.TensorSpec]) -> None:
    """Checks that sizes are known where the runtime must know them, and are left open on purpose only."""
    shapes = [tuple(spec.shape) for spec in specs]
    if "web" in targets and any(size is None for shape in shapes for size in shape):
        raise ArgumentError(
            "LiteRT.js, the web's runtime, takes files of fixed sizes only. "
            f"Received: targets={tuple(targets)!r}, inputs {shapes}. "
            "Fix them by batch_size and input_shape, or name other targets."
        )


def _new_folder(directory: str | os.PathLike[str], overwrite: bool) -> pathlib.Path:
    path = pathlib.Path(os.path.abspath(writable(directory, "directory")))
    remove_leftovers(path)  # before the checks, for it may put back an earlier export
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return path
    others = foreign_files(path)
    if others:
        raise OutputPathError(
            "An export replaces an earlier one, nothing else. "
            f"Received: directory={str(path)!r}, which holds something else: {', '.join(others[:3])}. "
            "Choose another place, or move that away."
        )
    if not overwrite:
        raise OutputPathError(
            f"An earlier export is replaced only if that is asked for. Received: directory={str(path)!r}, "
            "which holds one, and overwrite=False. Pass overwrite=True or choose another place."
        )
    return path


def _timed(made: Made) -> bool:
    """Tells whether a time on this machine says something: with AVX, sparse kernels do not run."""
    return not made.artifact.sparse or not has_avx()


def _finish(
    maker: Maker, rows: list[dict[str, Any]], folder: pathlib.Path, baseline: keras.Model | None
) -> None:
    """Moves what was chosen into the folder and writes manifest and page."""
    maker.step("report")
    chosen = {row["candidate"] for row in rows}
    if "int8" in chosen:
        maker.step("where the error of int8 arises")
        maker.notes += _int8_notes(maker, folder)
    considered: list[dict[str, Any]] = []
    shipped: dict[str, Made] = {}
    for name, made in maker.made.items():
        if isinstance(made, str):
            considered.append({"name": name, "refused": made})
            continue
        path = made.artifact.path
        considered.append(
            {
                "name": name,
                "shipped": name in chosen,
                "precision": made.artifact.precision,
                "size_bytes": made.artifact.size_bytes,
                "latency_ms": made.latency_ms if _timed(made) else None,
                "score": made.score,
            }
        )
        if name in chosen:
            shipped[name] = made
            shutil.move(path, folder / path.name)
    for row in rows:
        made = shipped[row["candidate"]]
        path = folder / row["file"]
        row |= {"size_bytes": disk_bytes(path), "gzip_bytes": gzip_bytes(path), "score": made.score}
        row |= {
            "latency_ms": made.latency_ms if _timed(made) else None,
            "speedup": made.speedup if _timed(made) else None,
        }
    count = sum(int(np.prod(each.shape)) for each in maker.model.weights)
    zeros = sum(int((keras.ops.convert_to_numpy(each) == 0).sum()) for each in maker.model.weights)
    stages = [] if baseline is None else [("unpruned, Keras", baseline)]
    models = [
        {
            "stage": stage,
            "score": maker.keras_score if each is maker.model else maker.score(keras_predict(each)),
            "size_bytes": sum(keras.ops.convert_to_numpy(weight).nbytes for weight in each.weights),
        }
        for stage, each in [*stages, ("as given, Keras", maker.model)]
    ]
    models += [
        {"stage": each["name"], "score": each["score"], "size_bytes": each["size_bytes"]}
        for each in considered
        if each.get("shipped")
    ]
    if maker.made.get("float32") and any(row["latency_ms"] for row in rows):
        maker.notes.append(
            "Times: LiteRT, one thread, files in turns, medians; of dense float32 in the same run."
        )
    write_manifest(
        folder,
        model={"name": maker.model.name, "weights": count, "zeros": zeros},
        rows=rows,
        models=models,
        notes=maker.notes,
        considered=considered,
    )


def _int8_notes(maker: Maker, folder: pathlib.Path) -> list[str]:
    """Writes where the error of the int8 file arises, and tells that and what became of the zeros."""
    notes, made = [], {name: each for name, each in maker.made.items() if isinstance(each, Made)}
    path = made["int8"].artifact.path
    if graph.read_flow(maker.model) is not None:
        few = [each[:INT8_SAMPLES] for each in maker.arrays]
        float32 = made["float32"].artifact.path if "float32" in made else None
        table = layer_errors(maker.model, path, few, float32=float32)
        table.to_csv(folder / LAYERS, index=False)
        worst = table.nlargest(3, "added")
        listed = ", ".join(f"{place} ({100 * added:.1f}%)" for place, added in zip(worst.path, worst.added))
        notes.append(
            f"int8: most error arises in {listed}, of the layer's output; all layers are in {LAYERS}."
        )
    if has_zeros(maker.model):
        kept = zeros_kept(maker.model, path)
        kept = kept[kept.zeros_lost.notna() & (kept.sparsity_keras > 0)]
        lost = kept[kept.zeros_lost > 0]
        which = f", but not {', '.join(lost.path[:3])}" if len(lost) else ""
        notes.append(
            f"int8: {len(kept) - len(lost)} of {len(kept)} kernels with zeros kept all of them{which}."
        )
    return notes
