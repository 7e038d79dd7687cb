"""MkDocs hooks: figures out of experiments, and formulas as MathML.

``{{ table NAME KEY }}`` and ``{{ provenance NAME }}`` are filled from an experiment. A table is a list of
rows in results.json under its key; ``{{ table NAME KEY: form, x86 }}`` shows these columns only.

The results in docs/results are what an experiment wrote, copied as it is:

    python -m experiments.quickstart
    cp results/quickstart/{results.json,*.png} docs/results/quickstart/

Formulas stand as LaTeX between dollars, ``$…$`` in a line and ``$$…$$`` on lines of their own. They
become MathML, which browsers draw by themselves: no script, no font, no other machine.
"""

import html
import json
import pathlib
import re

from latex2mathml.converter import convert

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


def on_page_content(content, **_):
    """Turns the LaTeX that arithmatex has marked into MathML."""
    marked = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(marked, _formula, content, flags=re.DOTALL)


def _formula(match):
    latex = html.unescape(match[2])
    mathml = convert(latex, display="inline" if match[1] == "span" else "block")
    if "\\" in html.unescape(mathml):  # a command that the converter does not know, it writes as text
        raise ValueError(f"A formula must be of known commands. Received: {latex!r}, which gave {mathml}.")
    return mathml if match[1] == "span" else f'<div class="formula">{mathml}</div>'


def _read(name):
    return json.loads((RESULTS / name / "results.json").read_text())


def _table(results, key, columns=None):
    rows = results[key]
    if columns:
        rows = [{name: row[name] for name in columns.split(", ")} for row in rows]
    used = {name: COLUMNS.get(name, (name.replace("_", " "), None)) for row in rows for name in row}
    lines = [
        "| " + " | ".join(title for title, _ in used.values()) + " |",
        "|" + "|".join("---:" if _is_number(rows, name) else "---" for name in used) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name), form) for name, (_, form) in used.items()) + " |")
    return "\n".join(lines)


def _is_number(rows, name):
    """Tells whether a column holds numbers, which may have words behind them, as in "3 of 4"."""
    texts = [row[name] for row in rows if isinstance(row.get(name), str)]
    return all(text[:1].isdigit() for text in texts)


def _cell(value, form):
    if value is None:
        return "–"
    if isinstance(value, str):
        value = value.replace("*", r"\*")
    if form is None:
        figures = 4 if isinstance(value, float) and abs(value) >= 1e-3 else 1  # errors are small
        form = f"{{:.{figures}g}}" if isinstance(value, float) else "{:,}" if type(value) is int else "{}"
    return form.format(value)


def _provenance(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    processor = f" ({results['processor']})" if "processor" in results else ""
    return (
        f"Seed {results['config']['seed']}, {results['seconds']:.0f} seconds on two cores{processor}, "
        f"at most {results['peak_memory_gb']} GB of memory; {versions}."
    )


PARTS = {"table": _table, "provenance": _provenance}
