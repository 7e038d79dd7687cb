import base64
import re

import pandas as pd

from tfkit.report import html

TABLE = pd.DataFrame({"Stage": ["dense", "pruned <80%>"], "Bytes": ["100", "25"]})


def write(tmp_path, **arguments):
    given = {"title": "Small & fast", "summary": ["A quarter of the size."], "table": TABLE}
    return html.write_report(tmp_path / "report.html", **(given | arguments)).read_text()


def test_every_cell_stands_in_the_page_escaped(tmp_path):
    page = write(tmp_path)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    assert cells == ["dense", "100", "pruned &lt;80%&gt;", "25"]
    assert re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page) == ["Stage", "Bytes"]


def test_words_stand_to_the_left_and_long_ones_wrap_but_names_and_numbers_do_not(tmp_path):
    table = pd.DataFrame({"file": ["a_name_that_must_not_be_broken.tflite"], "MB": ["1.5e-02"]})
    page = write(tmp_path, table=table.assign(why="a sentence of several words"), heading="Files")
    assert re.findall(r"<td([^>]*)>", page) == [' class="word"', "", ' class="word text"']
    assert re.findall(r'<th scope="col"([^>]*)>', page) == [' class="word"', "", ' class="word"']
    assert "<h2>Files</h2>" in page


def test_summary_and_notes_stand_in_the_page(tmp_path):
    page = write(tmp_path, notes=["Median of 50 runs."])
    assert "<p>A quarter of the size.</p>" in page
    assert "<li>Median of 50 runs.</li>" in page
    assert "<h1>Small &amp; fast</h1>" in page


def test_pictures_are_inside_the_page(tmp_path):
    page = write(tmp_path, figures=[html.Figure("Pictures", b"\x89PNG", "how to read it")])
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page)[1]
    assert base64.b64decode(data) == b"\x89PNG"
    assert "<figcaption>how to read it</figcaption>" in page


def test_page_loads_nothing_from_outside(tmp_path):
    assert not re.search(r"https?://|<script|<link", write(tmp_path))
