"""The memory that an artifact adds, on accounts of our own."""

import pytest

from tests.export.test_signature import net
from tfkit import export_tflite
from tfkit.export import runners
from tfkit.export.apart import measure_apart
from tfkit.export.runners import Memory


@pytest.mark.parametrize(
    ("resident", "peak", "later", "added"),
    [
        (100, 100, 130, 30),  # the peak began again
        (100, 100, 100, 0),
        (100, 150, 180, 80),  # it did not, but was passed
        (100, 150, 150, None),  # an older peak hides what came
        (None, None, None, None),
        (100, 100, None, None),
    ],
)
def test_memory_is_the_peak_above_what_was_resident(monkeypatch, resident, peak, later, added):
    monkeypatch.setattr(runners, "_status", lambda name: later)
    assert Memory(resident, peak).added() == added


def test_a_system_without_an_account_tells_nothing(monkeypatch):
    monkeypatch.setattr(runners.pathlib.Path, "read_text", lambda *_: (_ for _ in ()).throw(OSError))
    assert runners._status("VmRSS") is None


def test_a_line_of_the_account_is_read_in_bytes(monkeypatch):
    monkeypatch.setattr(runners.pathlib.Path, "read_text", lambda *_: "Name:\tx\nVmHWM:\t   12 kB\n")
    assert runners._status("VmHWM") == 12 * 1024
    assert runners._status("VmRSS") is None


@pytest.mark.skipif(not runners.pathlib.Path("/proc/self/status").exists(), reason="only Linux tells")
def test_outputs_and_memory_come_together(tmp_path):
    run = measure_apart(export_tflite(net(), tmp_path / "m.tflite").path, None)
    assert run.outputs[0].shape[0] == 1
    assert 0 < run.memory_bytes < 500e6
