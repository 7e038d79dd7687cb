"""MkDocs hook: fills ``{{ table NAME }}`` and ``{{ provenance NAME }}`` from an experiment.

The results in docs/results are what an experiment wrote, copied as it is:

    python -m experiments.quickstart
    cp results/quickstart/{results.json,*.png} docs/results/quickstart/
"""

import json
import pathlib
import re

RESULTS = pathlib.Path(__file__).parent / "results"
COLUMNS = {
    "stage": ("stage", "{}"),
    "psnr_db": ("PSNR, dB", "{:.2f}"),
    "mae": ("MAE", "{:.4f}"),
    "nonzero": ("non-zero weights", "{:,.0f}"),
    "size_bytes": ("bytes", "{:,.0f}"),
    "gzip_bytes": ("gzip bytes", "{:,.0f}"),
    "latency_ms": ("latency, ms", "{:.2f}"),
    "parity_error": ("error against Keras", "{:.0e}"),
}


def on_page_markdown(markdown, **_):
    """Replaces every placeholder of a page."""
    return re.sub(r"\{\{ (\w+) (\w+) \}\}", lambda match: PARTS[match[1]](_read(match[2])), markdown)


def _read(name):
    return json.loads((RESULTS / name / "results.json").read_text())


def _table(results):
    used = {key: value for key, value in COLUMNS.items() if any(key in row for row in results["stages"])}
    lines = [
        "| " + " | ".join(title for title, _ in used.values()) + " |",
        "|---|" + "---:|" * (len(used) - 1),
    ]
    for row in results["stages"]:
        cells = ["–" if row.get(key) is None else form.format(row[key]) for key, (_, form) in used.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _provenance(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"Seed {results['config']['seed']}, {results['seconds']:.0f} seconds on two cores, "
        f"at most {results['peak_memory_gb']} GB of memory; {versions}."
    )


PARTS = {"table": _table, "provenance": _provenance}
