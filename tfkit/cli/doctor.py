"""``tfkit doctor``: which proofs this machine can run."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

import click

import tfkit
from tfkit.cli.command import FAILED, Command, echo_json, echo_paragraph
from tfkit.report.progress import working

if TYPE_CHECKING:
    from tfkit.export.machine import Check

PACKAGES = (
    "tensorflow",
    "keras",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "keras-tuner",
    "tensorflow-model-optimization",
    "numpy",
    "pandas",
    "matplotlib",
)


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Tell which proofs this machine can run, and how to get what is missing.

    Each is really run, on a small model: LiteRT, TensorFlow, qemu as a processor without AVX, and
    LiteRT.js in headless Chromium. It takes about half a minute.

    Exit codes: 0 when nothing is missing, 1 when something is.
    """
    versions = {name: _version(name) for name in PACKAGES}
    absent = [name for name, version in versions.items() if version is None]
    show = not as_json
    if show:
        click.echo(f"tfkit {tfkit.__version__}, Python {platform.python_version()}, {platform.platform()}")
        click.echo(", ".join(f"{name} {version}" for name, version in versions.items() if version))
    checks, avx = [], None
    if absent:
        checks.append(_row("packages", False, f"missing: {', '.join(absent)}", _install(absent), show))
    else:
        from tfkit.export.apart import has_avx

        avx = has_avx()
        if show:
            click.echo(
                "This processor has AVX, so sparse kernels run here under qemu only."
                if avx
                else "This processor has no AVX, so sparse kernels run here."
            )
        for check in _checks(show):
            checks.append(_row(check.proof, check.passed, check.detail, check.remedy, show))
    passed = all(check["passed"] for check in checks)
    if as_json:
        echo_json(
            {
                "passed": passed,
                "tfkit": tfkit.__version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "avx": avx,
                "packages": versions,
                "checks": checks,
            }
        )
    else:
        click.echo("Every proof runs here." if passed else "Exports leave out the proofs that are missing.")
    if not passed:
        context.exit(FAILED)


def _checks(show: bool) -> "Iterator[Check]":
    """Yields a check of the machine as soon as it is known, and shows that it is being made."""
    from tfkit.export.machine import check_machine

    found = check_machine()
    while True:
        with working("trying a proof", verbose=show and sys.stderr.isatty()):
            check = next(found, None)
        if check is None:
            return
        yield check


def _row(proof: str, passed: bool, detail: str, remedy: str, show: bool) -> dict[str, str | bool]:
    """Returns a check as JSON holds it, having shown it."""
    if show:
        echo_paragraph(f"{'ok' if passed else 'MISSING':8}{proof}: {detail}", indent=" " * 8)
        if remedy:
            echo_paragraph(f"{'':8}{remedy}", indent=" " * 8)
    return {"proof": proof, "passed": passed, "detail": detail, "remedy": remedy}


def _install(names: list[str]) -> str:
    return f"pip install {' '.join(names)}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
