"""What a user's type checker sees of tfkit: mypy reads this file, nothing runs it."""

from typing import Any, assert_type

import tfkit
from tfkit import curves, export


def results(model: Any, build: Any, x: Any) -> None:
    """The public names have types, though they are loaded lazily."""
    space = tfkit.SearchSpace(learning_rate=(1e-4, 1e-2))
    found = tfkit.search(build, x, space=space, max_trials=1, epochs=1, directory="search")
    assert_type(found, tfkit.SearchResult)
    assert_type(tfkit.__version__, str)
    assert_type(tfkit.select_layers(model, "*").paths, tuple[str, ...])
    assert_type(tfkit.export_tflite(model, "model.tflite"), tfkit.Artifact)
    assert_type(tfkit.find_learning_rate(model, x), tfkit.LearningRateSearch)
    assert_type(curves.linear(0.0, 1.0, 3)(1), float)


def the_room_that_is_called(model: Any) -> None:
    """`tfkit.export` is a module and a function."""
    assert_type(tfkit.export(model, "folder"), tfkit.ExportReport)
    assert_type(export(model, "folder"), tfkit.ExportReport)


def mistakes(model: Any) -> None:
    """What mypy must refuse: it tells if one of these comments is not needed."""
    tfkit.no_such_name  # type: ignore[attr-defined]  # noqa: B018
    tfkit.export(model, directory=3)  # type: ignore[arg-type]
    tfkit.prune_now(model, scope="layers")  # type: ignore[arg-type]
    tfkit.select_layers(model)  # type: ignore[call-arg]
