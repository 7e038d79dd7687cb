"""A report as one HTML file that needs nothing beside it."""

import base64
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture in a report.

    Attributes:
        title: What it shows.
        png: The picture.
        caption: How to read it.
    """

    title: str
    png: bytes
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def _kind(cell: object) -> str:
    """Returns the classes of a cell: words stand to the left, long ones may wrap, numbers neither."""
    if not isinstance(cell, str) or not cell[:1].isalpha():
        return ""
    return "word text" if len(cell) > 20 and " " in cell else "word"


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: Sequence[str],
    table: "pd.DataFrame",
    figures: Sequence[Figure] = (),
    notes: Sequence[str] = (),
    heading: str = "Every stage",
) -> pathlib.Path:
    """Writes a self-contained HTML page: findings, a table, pictures, notes.

    Args:
        path: The file to write.
        title: The page's heading.
        summary: Findings, one sentence each, shown first.
        table: Rows as text, ready to read; the first column names the row.
        figures: Pictures, in order.
        notes: How the figures were obtained.
        heading: What the table shows.

    Returns:
        The path.

    Examples:
        >>> import pathlib, tempfile, pandas as pd
        >>> page = write_report(pathlib.Path(tempfile.mkdtemp(), "report.html"), title="A & B",
        ...                     summary=["Half the size."], table=pd.DataFrame({"stage": ["dense"]}))
        >>> "A &amp; B" in page.read_text()
        True
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfkit.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        columns=list(table.columns),
        rows=table.to_numpy().tolist(),
        figures=figures,
        notes=notes,
        heading=heading,
        kind=_kind,
    )
    path = pathlib.Path(path)
    path.write_text(page, encoding="utf-8")
    return path
