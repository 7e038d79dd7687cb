"""The pages keep up with the code: quoted messages exist, and every public name has its entry."""

import ast
import importlib
import pathlib
import re

import pytest

import tfkit

ROOT = pathlib.Path(__file__).parents[1]
INNER = {"tfkit.cli", "tfkit.frozen", "tfkit.graph"}  # no part of what users call


def wording(node):
    """Returns the text of a literal, with … for what an f-string fills in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


@pytest.fixture(scope="module")
def texts():
    trees = [ast.parse(path.read_text()) for path in sorted(ROOT.glob("tfkit/**/*.py"))]
    return [text for tree in trees for text in map(wording, ast.walk(tree)) if text]


PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
HEADINGS = [  # between single backticks, or double ones where the message has some itself
    plain or ticked for plain, ticked in re.findall(r"^### (?:`([^`]+)`|`` (.+) ``)$", PAGE, re.MULTILINE)
]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_quoted_message_is_one_of_the_codes(heading, texts):
    assert any(text.startswith(heading) for text in texts)


def test_messages_are_quoted():
    assert len(HEADINGS) == len(set(HEADINGS)) == len(re.findall(r"^### `", PAGE, re.MULTILINE)) > 40


def test_every_public_name_has_one_entry():
    page = (ROOT / "docs" / "api.md").read_text()
    objects = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(objects) == len(set(objects))
    entries = {path.rpartition(".")[2] for path in objects} | set(re.findall(r"`(\w+)`", page))
    whole = {name for path in objects for name in public_names(path)}  # of a module shown as a whole
    rooms = [f"tfkit.{path.parent.name}" for path in ROOT.glob("tfkit/*/__init__.py")]
    reports = [f"tfkit.report.{name}" for name in public_names("tfkit.report")]
    names = set(tfkit.__all__).union(*map(public_names, [*(set(rooms) - INNER), *reports]))
    folders = {path.name for path in ROOT.glob("tfkit/*")} | {"html", "measure", "plots"}
    assert names - entries - whole - folders == set()


def public_names(path):
    """Returns what a module lists in `__all__`, or else defines; none for what is no module."""
    place = ROOT / path.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return set()
    body = ast.parse(file.read_text()).body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    if place.is_dir():  # a room that loads its names when they are asked for
        return set(importlib.import_module(path).__all__)
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {name for name in defined if not name.startswith("_")}
