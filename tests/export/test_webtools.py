"""Where Chromium and LiteRT.js are found, and what is said when they are not."""

import pytest

from tfkit.export.webtools import Browser, find_browser, missing_for_browser


@pytest.fixture(autouse=True)
def _empty_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("TFKIT_LITERTJS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "project" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "below")


def put_program(folder, name="chromium"):
    program = folder / "bin" / name
    program.touch(0o755)
    return program


def put_package(folder, helper="../wasm-utils"):
    core = folder / "node_modules" / "@litertjs" / "core"
    for package in (core, core / helper):
        (package / "dist").mkdir(parents=True)
        (package / "dist" / "index.js").touch()
    return core


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_is_found_under_each_of_its_names(tmp_path, name):
    program, package = put_program(tmp_path, name), put_package(tmp_path)
    assert find_browser() == Browser(program, package)
    assert missing_for_browser() == ""


@pytest.mark.parametrize("place", ["project/below", "project", "."])
def test_the_package_is_found_here_and_above(tmp_path, place):
    put_program(tmp_path)
    package = put_package((tmp_path / place).resolve())
    assert find_browser().package == package


def test_the_nearest_package_is_taken(tmp_path):
    put_program(tmp_path)
    put_package(tmp_path)
    near = put_package(tmp_path / "project")
    assert find_browser().package == near


def test_the_environment_goes_before_the_folders(tmp_path, monkeypatch):
    put_program(tmp_path)
    put_package(tmp_path / "project")
    named = put_package(tmp_path / "elsewhere")
    monkeypatch.setenv("TFKIT_LITERTJS", str(named))
    assert find_browser().package == named


@pytest.mark.parametrize("helper", ["../wasm-utils", "node_modules/@litertjs/wasm-utils"])
def test_the_helper_is_found_beside_the_package_and_inside(tmp_path, helper):
    put_program(tmp_path)
    core = put_package(tmp_path, helper)
    assert find_browser().folders()["wasm-utils"].resolve() == (core / helper).resolve()


def test_a_package_without_its_helper_is_none(tmp_path):
    put_program(tmp_path)
    core = put_package(tmp_path)
    (core.parent / "wasm-utils" / "dist" / "index.js").unlink()
    assert find_browser() is None
    assert missing_for_browser() == (
        "No @litertjs/core with its @litertjs/wasm-utils is in node_modules here or above. "
        "Run npm install @litertjs/core."
    )


def test_a_wrong_place_in_the_environment_is_named(tmp_path, monkeypatch):
    put_program(tmp_path)
    put_package(tmp_path)  # not taken in its stead
    monkeypatch.setenv("TFKIT_LITERTJS", "/no/such/place")
    assert find_browser() is None
    assert "is at TFKIT_LITERTJS=/no/such/place. Run npm install" in missing_for_browser()


def test_a_missing_browser_is_named(tmp_path):
    put_package(tmp_path)
    assert find_browser() is None
    assert missing_for_browser() == (
        "No browser is on the PATH (chromium, chromium-browser, google-chrome). "
        "Debian has one: apt-get install chromium."
    )


def test_all_that_is_missing_is_named_at_once():
    said = missing_for_browser()
    assert "No browser" in said
    assert "No @litertjs/core" in said
