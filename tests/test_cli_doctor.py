"""`tfkit doctor`: what it finds on this machine, and on poorer ones."""

import pytest

from tests.cli_calls import call
from tfkit.export import machine
from tfkit.export.apart import emulator, has_avx
from tfkit.export.machine import Check, check_machine
from tfkit.export.webtools import missing_for_browser

PROOFS = ["LiteRT", "TensorFlow", "without AVX", "Chromium, wasm", "Chromium, WebGPU"]
GOOD, BAD = Check("LiteRT", True, "it ran"), Check("without AVX", False, "no emulator", "apt-get install it")


@pytest.fixture
def found(monkeypatch):
    """What the machine is said to have."""
    checks = [GOOD, BAD]
    monkeypatch.setattr(machine, "check_machine", lambda: iter(checks))
    return checks


def test_what_is_missing_is_told_with_its_remedy(found):
    done = call("doctor")
    assert done.exit_code == 1
    assert "ok      LiteRT: it ran\n" in done.stdout
    assert "MISSING without AVX: no emulator\n        apt-get install it\n" in done.stdout


def test_nothing_missing_is_exit_code_0(found):
    found.remove(BAD)
    done = call("doctor")
    assert done.exit_code == 0
    assert done.stdout.endswith("Every proof runs here.\n")


def test_json_holds_versions_and_checks(found):
    import json

    done = call("doctor", "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 1
    assert said["passed"] is False
    assert said["avx"] == has_avx()
    assert said["packages"]["keras"].startswith("3.")
    assert said["checks"][1] == {
        "proof": "without AVX", "passed": False, "detail": "no emulator", "remedy": "apt-get install it"
    }  # fmt: skip


def test_missing_packages_are_named_and_nothing_else_is_tried(monkeypatch):
    import importlib

    module = importlib.import_module("tfkit.cli.doctor")
    monkeypatch.setattr(module, "PACKAGES", ("keras", "no-such-package"))
    monkeypatch.setattr(machine, "check_machine", lambda: pytest.fail("tried"))
    done = call("doctor")
    assert done.exit_code == 1
    assert "pip install no-such-package" in done.stdout


# The checks themselves.


@pytest.mark.slow
def test_every_proof_is_really_tried():
    checks = list(check_machine())
    assert [each.proof for each in checks] == PROOFS
    passed = dict(zip(PROOFS, (each.passed for each in checks), strict=True))
    assert passed["LiteRT"]
    assert passed["TensorFlow"]
    assert passed["without AVX"] == (not has_avx() or emulator() is not None)
    assert passed["Chromium, wasm"] == (not missing_for_browser())
    assert all(bool(each.remedy) != each.passed for each in checks)


def test_on_a_poor_machine_each_remedy_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "has_avx", lambda: True)
    remedies = {each.proof: each.remedy for each in check_machine()}
    assert "apt-get install qemu-user" in remedies["without AVX"]
    assert "apt-get install chromium" in remedies["Chromium, wasm"]


def test_without_litert_the_rest_is_not_tried(monkeypatch):
    from tfkit.errors import ExportError

    def fail(*_):
        raise ExportError("no\n  runtime")

    monkeypatch.setattr(machine, "export_tflite", fail)
    monkeypatch.setattr(machine, "export_saved_model", lambda *_: None)
    checks = list(check_machine())
    assert [each.passed for each in checks] == [False, True, False, False, False]
    assert checks[0].detail == "no runtime"


def test_a_browser_that_is_broken_is_no_proof(monkeypatch):
    from tfkit.errors import ExportError

    def fail(*_, **__):
        raise ExportError("it does not start")

    monkeypatch.setattr(machine, "missing_for_browser", lambda: "")
    monkeypatch.setattr(machine, "run_in_browser", fail)
    checks = list(check_machine())[3:]
    assert [each.passed for each in checks] == [False, False]
    assert checks[0].detail == "it does not start"
    assert "shared memory" in checks[0].remedy
