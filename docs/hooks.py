"""MkDocs hook: fills ``{{ table NAME KEY }}`` and ``{{ provenance NAME }}`` from an experiment.

A table is a list of rows in results.json under its key; ``{{ table NAME KEY: form, x86 }}`` shows
these columns only.

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
    "parameters": ("parameters", "{:,.0f}"),
    "nonzero": ("non-zero weights", "{:,.0f}"),
    "size_bytes": ("bytes", "{:,.0f}"),
    "gzip_bytes": ("gzip bytes", "{:,.0f}"),
    "latency_ms": ("latency, ms", "{:.2f}"),
    "parity_error": ("error against Keras", "{:.0e}"),
}


def on_page_markdown(markdown, **_):
    """Replaces every placeholder of a page."""
    return re.sub(
        r"\{\{ (\w+) (\w+)(?: (\w+))?(?:: ([^}]+))? \}\}",
        lambda match: PARTS[match[1]](_read(match[2]), *filter(None, match.group(3, 4))),
        markdown,
    )


def _read(name):
    return json.loads((RESULTS / name / "results.json").read_text())


def _table(results, key, columns=None):
    rows = results[key]
    if columns:
        rows = [{name: row[name] for name in columns.split(", ")} for row in rows]
    used = {name: COLUMNS.get(name, (name.replace("_", " "), None)) for row in rows for name in row}
    lines = [
        "| " + " | ".join(title for title, _ in used.values()) + " |",
        "|---|" + "---:|" * (len(used) - 1),
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name), form) for name, (_, form) in used.items()) + " |")
    return "\n".join(lines)


def _cell(value, form):
    if value is None:
        return "–"
    if form is None:
        form = "{:.4g}" if isinstance(value, float) else "{:,}" if type(value) is int else "{}"
    return form.format(value)


def _provenance(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    processor = f" ({results['processor']})" if "processor" in results else ""
    return (
        f"Seed {results['config']['seed']}, {results['seconds']:.0f} seconds on two cores{processor}, "
        f"at most {results['peak_memory_gb']} GB of memory; {versions}."
    )


PARTS = {"table": _table, "provenance": _provenance}
