import io

import matplotlib.image
import numpy as np
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
