import json

import keras
import numpy as np
import pytest

import tfkit
from experiments import quickstart
from tests.experiments.configs import changed

TINY = quickstart.Config(
    patch=16, tile=32, compare_epochs=1, trials=1, trial_epochs=1, tune_epochs=1, refine_epochs=2, runs=3
)


@pytest.mark.slow
def test_own_model_and_own_pictures_come_out_pruned_proven_and_reported(tmp_path, monkeypatch):
    choose = quickstart.Job.choose_layers

    def choose_top(job, base):  # whatever is better: the other layers are frozen until the zeros come
        choose(job, base)
        return ["decoder_conv2..decoder_conv3"]

    monkeypatch.setattr(quickstart.Job, "choose_layers", choose_top)
    model = tfkit.models.build_encoder_decoder(
        (32, 32, 3), filters=(4, 8, 8), output_channels=3, residual=True, name="mine"
    )
    model.save(tmp_path / "mine.keras")
    (tmp_path / "images").mkdir()
    for number in range(2):
        picture = np.random.default_rng(number).uniform(0, 255, (64, 160, 3))
        keras.utils.save_img(tmp_path / "images" / f"{number}.png", picture, scale=False)
    output = tmp_path / "out"

    quickstart.Job(TINY, output, str(tmp_path / "mine.keras"), str(tmp_path / "images")).run()

    results = json.loads((output / "results.json").read_text())
    stages = {row["stage"]: row for row in results["stages"]}
    assert results["config"]["patch"] == 32  # a model of fixed size decides
    pruned = keras.models.load_model(output / "pruned.keras")
    assert stages["pruned 80%"]["nonzero"] == sum(int(np.count_nonzero(w)) for w in pruned.get_weights())
    kernels = [np.asarray(layer.kernel) for layer in pruned.layers if layer.weights]
    assert len(kernels) == 6
    for kernel in kernels[1:-1]:
        assert 1 - np.count_nonzero(kernel) / kernel.size == pytest.approx(0.8, abs=0.5 / kernel.size)
    for name in ("dense_float32", "pruned_float32", "pruned_float16", "pruned_int8"):
        assert (output / f"{name}.tflite").stat().st_size == stages[name.replace("_", ", ")]["size_bytes"]
    forms = ("SavedModel", "float32", "float16", "int8")
    assert list(results["parity"]) == [f"pruned, {each}" for each in forms]
    assert all(parity["relative_error"] <= parity["tolerance"] for parity in results["parity"].values())
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page  # self-contained
    assert all(stage in page for stage in stages)


def test_a_lambda_layer_stops_the_job_with_a_message(tmp_path, capsys):
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(tmp_path / "lambda.keras")
    assert quickstart.main(["--quick", "--model", str(tmp_path / "lambda.keras")]) == 1
    assert "error: A Lambda layer runs code from the file" in capsys.readouterr().err


def test_an_output_that_is_no_folder_stops_the_job_with_a_message(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert quickstart.main(["--quick", "--output", str(tmp_path / "file" / "out")]) == 1
    assert "error: --output must be a folder. Received:" in capsys.readouterr().err


def test_quick_differs_from_the_full_job_in_length_only():
    names = changed(quickstart.Config(), quickstart.QUICK)
    assert names
    assert all(name.endswith(("epochs", "trials", "runs", "stride")) for name in names)
