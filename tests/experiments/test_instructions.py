"""Counted instructions: what a product of matrices must take at least and at most, and missing tools."""

import shutil

import keras
import pytest
from keras import layers

import tfkit
from experiments import instructions
from tfkit.export import apart

WIDTH = 512
ready = pytest.mark.skipif(
    not apart.has_avx() or apart.emulator() is None or shutil.which("gcc") is None,
    reason="counting needs an x86-64 with AVX, qemu-user and gcc",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of one and of three Dense layers."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for depth in (1, 3):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((WIDTH,)), *(layers.Dense(WIDTH) for _ in range(depth))])
        found[depth] = tfkit.export_tflite(model, folder / f"{depth}.tflite").path
    return found


@pytest.mark.slow
@ready
def test_a_layer_takes_between_half_an_instruction_and_two_a_product(files):
    """An SSE register holds four numbers; each four need a product, a sum and at most a few moves."""
    one, three = (instructions.count_instructions(files[depth]) for depth in (1, 3))
    layer = (three - one) / 2
    assert WIDTH**2 / 2 <= layer <= 2 * WIDTH**2


@pytest.mark.slow
@ready
def test_a_count_is_repeatable(files):
    first, second = (instructions.count_instructions(files[1]) for _ in range(2))
    assert second == pytest.approx(first, rel=0.01)


def test_a_missing_tool_is_named_with_its_package(files, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(tfkit.ExportError, match=r"needs gcc.*Received: none on PATH.*apt-get install gcc"):
        instructions.count_instructions(files[1])


@pytest.mark.parametrize("calls", [(3, 1), (2, 2), (-1, 1)])
def test_numbers_of_calls_that_cannot_be_subtracted_are_refused(files, calls):
    with pytest.raises(tfkit.ArgumentError, match=r"`calls` must be two numbers.*Received: calls="):
        instructions.count_instructions(files[1], calls=calls)


@ready
def test_an_unknown_processor_is_refused(files):
    with pytest.raises(
        tfkit.ArgumentError, match=r"must be one of no-avx, arm64, arm64-dot.*Received: processor='mips'"
    ):
        instructions.count_instructions(files[1], processor="mips")
