"""Progress on stderr: a line that changes on a terminal, plain lines elsewhere, nothing on stdout."""

import pytest

from tfkit.report.progress import bar, working


def test_away_from_a_terminal_each_step_is_a_plain_line(capsys):
    with working("reading [x]") as step:
        step("counting")
    assert capsys.readouterr() == ("", "reading [x]\ncounting\n")


def test_on_a_terminal_it_is_one_line_that_goes(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with working("reading [x]") as step:
        step("counting [y]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting [y]" in err
    assert "0:00:00" in err
    assert err.endswith("\x1b[2K")  # the line is cleared


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_bar_is_shown_on_request(verbose, capsys):
    with bar(verbose=verbose) as shown:
        assert list(shown.track([1, 2], description="doing")) == [1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert ("doing" in err) == bool(verbose)


def test_work_is_silent_on_request(capsys):
    with working("reading", verbose=0) as step:
        step("counting")
    assert capsys.readouterr() == ("", "")


def test_an_error_goes_through(capsys):
    with pytest.raises(KeyError), working("reading"):
        raise KeyError
