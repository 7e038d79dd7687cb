"""What the local server gives out, and to whom."""

import urllib.error
import urllib.request

import numpy as np
import pytest

from tfkit.export.page import Site, _serving, spoken


@pytest.fixture
def site(tmp_path):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "index.js").write_text("script")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model").write_bytes(b"model")
    return Site({"core": tmp_path / "core"}, {"runs": 1}, [tmp_path / "model"], [np.array([[1.5, 2.5]])])


@pytest.mark.parametrize(
    ("address", "content", "kind"),
    [
        ("core/index.js", b"script", "text/javascript"),
        ("job.json", b'{"runs": 1}', "application/json"),
        ("model/0", b"model", "application/octet-stream"),
        ("input/0/float32", np.array([1.5, 2.5], "float32").tobytes(), "application/octet-stream"),
        ("input/0/int32", np.array([1, 2], "int32").tobytes(), "application/octet-stream"),
    ],
)
def test_the_page_is_given_what_it_asks_for(site, address, content, kind):
    with _serving(site) as url, urllib.request.urlopen(url + address) as answer:
        assert answer.read() == content
        assert answer.headers["Content-Type"] == kind


def test_the_page_itself_is_isolated_so_that_its_clock_is_fine(site):
    with _serving(site) as url, urllib.request.urlopen(url) as answer:
        assert b"<!doctype html>" in answer.read()
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize("address", ["core/../secret", "core/none.js", "core", "secret", "other/index.js"])
def test_nothing_else_is_given(site, address):
    assert site.answer(address.split("/")) is None


@pytest.mark.parametrize("address", ["", "job.json", "model/0", "other-token/job.json"])
def test_nothing_is_given_to_whom_the_token_is_unknown(site, address):
    with _serving(site) as url:
        root = url.removesuffix(f"{site.token}/")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(root + address)


def test_a_result_from_whom_the_token_is_unknown_does_not_count(site):
    with _serving(site) as url:
        urllib.request.urlopen(url.replace(site.token, "other-token") + "result", data=b"forged").close()
        assert site.events.empty()
        urllib.request.urlopen(url + "result", data=b"real").close()
        assert site.events.get_nowait() == b"real"


def test_the_console_is_read_in_the_order_of_its_numbers(site):
    with _serving(site) as url:
        for number, text in ((10, b"last"), (2, b"then"), (0, b"first")):
            urllib.request.urlopen(f"{url}log/{number}", data=text).close()
    assert site.log == "first\nthen\nlast"


def test_the_server_is_closed_in_the_end(site):
    with _serving(site) as url:
        pass
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url)


def test_a_message_leaves_out_what_is_only_progress():
    log = "error: INFO: [x.cc:1] made\nlog: I1127 23 made\nwarn: [LiteRT] not\nerror: ERROR: no"
    assert spoken(log) == "warn: [LiteRT] not\nerror: ERROR: no"


def test_a_silent_console_says_nothing():
    assert spoken("error: INFO: [x.cc:1] made") == "nothing"
