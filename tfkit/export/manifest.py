"""What was exported, for which target and why: as a table, a page and a manifest."""

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tfkit.errors import ArgumentError
from tfkit.report.html import Figure, write_report
from tfkit.report.plots import trade_offs

if TYPE_CHECKING:
    import pandas as pd

MANIFEST, PAGE = "manifest.json", "report.html"
IMPORTANT = ("Nothing ", "NOT proven")  # how notes begin that nobody must overlook
PACKAGES = ("tfkit", "tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer")
COLUMNS = [
    "target", "runtime", "file", "precision", "sparse", "size_bytes", "gzip_bytes", "relative_error",
    "score", "latency_ms", "speedup", "proofs", "reason",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What `export` has written.

    Attributes:
        directory: Where it stands.
        rows: For each target and runtime what was chosen, as in `table`.
        models: `stage`, `score` and `size_bytes` of each stage of the model: ``"unpruned, Keras"`` (the
            `baseline`), ``"as given, Keras"``, and each file that ships, as ``"int8"``.
        notes: What the reader should know: how it was measured, what was not proven.
        manifest: All that `manifest.json` holds.

    Examples:
        >>> import pathlib, tempfile, numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> images = np.random.default_rng(0).random((8, 16, 16, 3))
        >>> report = tfkit.export(model, pathlib.Path(tempfile.mkdtemp(), "out"), targets="desktop",
        ...                       representative_data=images, verbose=0)
        >>> report.path("desktop", "LiteRT").name
        'model-int8.tflite'
    """

    directory: pathlib.Path
    rows: tuple[Mapping[str, Any], ...]
    models: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    manifest: Mapping[str, Any]

    @property
    def table(self) -> "pd.DataFrame":
        """A row for each target and runtime.

        `target`, `runtime`, `file`, `precision`, `sparse`, `size_bytes`, `gzip_bytes`, `relative_error`
        (against Keras), `score` (by `evaluate`), `latency_ms` (median, LiteRT with one thread on
        the machine that exported; NaN where that would say nothing), `speedup` (of dense float32 in the same
        run), `proofs` (where it was run and compared) and `reason` (why it was chosen).
        """
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=COLUMNS)

    def path(self, target: str, runtime: str | None = None) -> pathlib.Path:
        """Returns the artifact for a target, for its first runtime unless told otherwise.

        Raises:
            ArgumentError: If there is none.
        """
        for row in self.rows:
            if row["target"] == target and runtime in (None, row["runtime"]):
                return self.directory / row["file"]
        known = ", ".join(f"{row['target']} on {row['runtime']}" for row in self.rows)
        raise ArgumentError(f"No such artifact. Received: {target!r}, {runtime!r}. There are: {known}.")

    @property
    def page(self) -> pathlib.Path:
        """The report as an HTML page that needs nothing beside it."""
        return self.directory / PAGE

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "ExportReport":
        """Reads what an earlier export has written.

        Raises:
            ArgumentError: If there is none, or its manifest is torn.
        """
        path = pathlib.Path(directory) / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                path.parent,
                tuple(row | {"proofs": tuple(row["proofs"])} for row in found["targets"]),
                tuple(found["models"]),
                tuple(found["notes"]),
                found,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"A report is read from the folder that `export` wrote. Received: {str(directory)!r} "
                f"({type(error).__name__}: {error})."
            ) from error


def foreign_files(directory: pathlib.Path) -> list[str]:
    """Returns what stands in a folder and was not written by an export; all of it if none was."""
    if not directory.is_dir():
        return [directory.name]
    files = [str(path.relative_to(directory)) for path in sorted(directory.rglob("*")) if not path.is_dir()]
    try:
        found = ExportReport.load(directory).manifest
        ours = {MANIFEST, PAGE} | {each["file"] for each in found["files"]}
    except (ArgumentError, KeyError, TypeError):
        return files or ["folders"]
    return [each for each in files if each not in ours]


def write_manifest(
    folder: pathlib.Path,
    *,
    model: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    considered: Sequence[Mapping[str, Any]],
) -> None:
    """Writes manifest and page beside the artifacts.

    Args:
        folder: Where the artifacts stand.
        model: Name, parameters and zeros of the model.
        rows: The choices.
        models: Scores and bytes of the model's stages.
        notes: What the reader should know.
        considered: Every file that was made or refused, with `latency_ms` and `score` where known.
    """
    manifest = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": {"processor": platform.machine(), "system": platform.platform()},
        "model": dict(model),
        "files": [
            {
                "file": str(path.relative_to(folder)),
                "size_bytes": path.stat().st_size,
                "sha256": _sha256(path),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ],
        "targets": [dict(row) for row in rows],
        "models": [dict(each) for each in models],
        "considered": [dict(each) for each in considered],
        "notes": list(notes),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _write_page(folder, manifest)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_page(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    import pandas as pd

    rows = [
        {
            "target": row["target"],
            "runtime": row["runtime"],
            "file": row["file"],
            "MB": f"{row['size_bytes'] / 1e6:.3g}",
            "off by": f"{row['relative_error']:.1e}",
            "score": _number(row["score"], ".4g"),
            "ms here": _number(row["latency_ms"], ".2f"),
            "speed-up": _number(row["speedup"], ".2f"),
            "proven on": ", ".join(row["proofs"]),
        }
        for row in manifest["targets"]
    ]
    table = pd.DataFrame(rows)
    stages = [
        f"{each['stage']}: "
        + (f"score {each['score']:.5g}, " if each["score"] is not None else "")
        + f"{each['size_bytes'] / 1e6:.3g} MB"
        for each in manifest["models"]
    ]
    measured = [each for each in manifest["considered"] if each.get("latency_ms")]
    figures = []
    if measured:
        caption = (
            "Each file that was made: median latency on this machine, LiteRT with one thread. "
            "The line joins those that no other beats in everything shown."
        )
        figures.append(Figure("Size, latency and quality", trade_offs(pd.DataFrame(measured)), caption))
    refused = [
        f"{each['name']} was not shipped: {each['refused']}"
        for each in manifest["considered"]
        if each.get("refused")
    ]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version)
    write_report(
        folder / PAGE,
        title=f"{manifest['model']['name']}: what ships where",
        summary=[
            *(
                f"{row['target']}, {row['runtime']}: {row['file']} – {row['reason']}."
                for row in manifest["targets"]
            ),
            *(note for note in manifest["notes"] if note.startswith(IMPORTANT)),
            *stages,
        ],
        table=table.loc[:, (table != "").any()],
        heading="What ships where",
        figures=figures,
        notes=[
            *(note for note in manifest["notes"] if not note.startswith(IMPORTANT)),
            *refused,
            f"Made {manifest['created']} with {versions}.",
        ],
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
