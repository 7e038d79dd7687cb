"""The code blocks of README and docs run as they stand, each page from top to bottom."""

import pathlib
import re

import numpy as np
import pytest

import tfkit

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [page for page in sorted(ROOT.glob("docs/*.md")) if "```python" in page.read_text()]


def run_blocks(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    return namespace


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.slow
def test_readme_script_prunes_and_exports_a_users_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = (16, 16, 3)
    tfkit.models.build_encoder_decoder(shape, filters=(4, 4, 8, 8), output_channels=3).save("denoiser.keras")
    images = np.random.default_rng(0).random((40, *shape)).astype("float32")
    script = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[
        1
    ]
    namespace = {"x": images, "y": images}

    exec(compile(script, "README.md", "exec"), namespace)

    assert namespace["report"].path("mobile").is_relative_to(pathlib.Path("shipped").resolve())
    assert namespace["report"].path("mobile").is_file()


def test_links_in_readme_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
