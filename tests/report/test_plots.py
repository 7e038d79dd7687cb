import io

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import tfkit
from tfkit.report import plots


def picture_of(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def test_strip_shows_the_colours_it_was_given():
    red, blue = np.zeros((2, 8, 8, 3))
    red[..., 0] = 1
    blue[..., 2] = 1
    drawn = picture_of(plots.picture_strip({"red": red, "blue": blue}))
    middle = drawn[drawn.shape[0] // 2]
    assert (middle[: len(middle) // 4] == [1, 0, 0]).all(axis=1).any()
    assert (middle[3 * len(middle) // 4 :] == [0, 0, 1]).all(axis=1).any()


def test_strip_grows_with_the_pictures():
    grey = np.full((8, 8, 3), 0.5)
    one, three = (picture_of(plots.picture_strip({str(i): grey for i in range(n)})) for n in (1, 3))
    assert three.shape[1] == pytest.approx(3 * one.shape[1], rel=0.02)


@pytest.mark.parametrize("draw", [plots.picture_strip, plots.training_curves])
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(tfkit.ArgumentError, match=r"at least one.*Received: \w+=\{\}"):
        draw({})


def test_curves_change_with_the_numbers():
    low = plots.training_curves({"run": {"loss": [1.0, 0.5], "learning_rate": [0.1, 0.1]}})
    high = plots.training_curves({"run": {"loss": [1.0, 0.5], "learning_rate": [0.1, 0.9]}})
    assert (picture_of(low) != picture_of(high)).any()


def test_a_run_without_rate_is_drawn():
    assert picture_of(plots.training_curves({"run": {"loss": [2.0, 1.0]}})).ndim == 3


# trade_offs.

FILES = {"name": ["a", "b", "c"], "latency_ms": [1.0, 2.0, 3.0], "size_bytes": [4e6, 2e6, 3e6]}


def front(monkeypatch, table):
    """The points that the dashed line joins."""
    axes = []
    draw = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: axes.append(figure.axes[0]) or draw(figure))
    assert plots.trade_offs(pd.DataFrame(table))[1:4] == b"PNG"
    (line,) = axes[0].lines
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True)), axes[0].get_ylabel()


def test_the_front_leaves_out_what_is_slower_and_larger(monkeypatch):
    assert front(monkeypatch, FILES) == ([(1.0, 4.0), (2.0, 2.0)], "size, MB")


def test_a_better_score_brings_a_slower_and_larger_file_to_the_front(monkeypatch):
    points, label = front(monkeypatch, FILES | {"score": [0.8, 0.8, 0.9]})
    assert (points, label) == ([(1.0, 0.8), (2.0, 0.8), (3.0, 0.9)], "score")


def test_scores_stand_over_what_differs_more(monkeypatch):
    alike = {"latency_ms": [1.0, 1.1, 1.2], "size_bytes": [4e6, 1e6, 2e6], "score": [0.8, 0.7, 0.9]}
    points, _ = front(monkeypatch, FILES | alike)
    assert points == [(1.0, 0.7), (2.0, 0.9), (4.0, 0.8)]


def test_files_without_a_time_are_left_out(monkeypatch):
    points, _ = front(monkeypatch, FILES | {"latency_ms": [np.nan, 2.0, 1.0]})
    assert points == [(1.0, 3.0), (2.0, 2.0)]


def test_no_time_at_all_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"a row with a latency. Received: 0 such rows"):
        plots.trade_offs(pd.DataFrame(FILES | {"latency_ms": [np.nan] * 3}))


def test_equal_files_are_both_on_the_front(monkeypatch):
    points, _ = front(monkeypatch, {key: value[:1] * 2 for key, value in FILES.items()})
    assert points == [(1.0, 4.0), (1.0, 4.0)]
