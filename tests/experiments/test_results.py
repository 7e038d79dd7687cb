"""What stands beside figures, and how pages show them."""

import importlib.util
import pathlib
import platform

import pytest

from experiments import results

PAGES = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture
def hooks(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("hooks", PAGES / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results.json").write_text('{"rows": [{"form": "a", "MB": 1.5, "x86": null}]}')
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_page_shows_a_table_with_all_columns_or_those_it_names(hooks):
    whole = "| form | MB | x86 |\n|---|---:|---:|\n| a | 1.5 | – |"
    assert hooks.on_page_markdown("see {{ table one rows }}") == f"see {whole}"
    assert (
        hooks.on_page_markdown("{{ table one rows: x86, form }}") == "| x86 | form |\n|---:|---|\n| – | a |"
    )


def test_words_stand_left_and_errors_are_short(hooks, tmp_path):
    row = '{"runs": 3, "layers": "encoder_*", "picked": "3 of 4", "error": 5.636e-07, "share": 0.123456}'
    (tmp_path / "one" / "results.json").write_text(f'{{"rows": [{row}]}}')
    _, sides, cells = hooks.on_page_markdown("{{ table one rows }}").splitlines()
    assert sides == "|---:|---|---:|---:|---:|"
    assert cells == r"| 3 | encoder_\* | 3 of 4 | 6e-07 | 0.1235 |"


def test_the_processor_is_told_with_the_instructions_that_count(monkeypatch):
    written = (
        "processor\t: 0\nmodel name\t: Some CPU: new\nflags\t\t: sse avx2 avx512_vnni\n\nprocessor\t: 1\n"
    )
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: written)
    assert results.processor() == "Some CPU: new, avx2, avx512_vnni"


def test_a_system_that_does_not_tell_its_processor_has_a_name_still(monkeypatch):
    def missing(path):
        raise FileNotFoundError

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    assert results.processor() == (platform.processor() or platform.machine())
