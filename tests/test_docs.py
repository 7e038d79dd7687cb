"""The code blocks of README and docs run as they stand, each page from top to bottom."""

import pathlib
import re

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

import tfkit

ROOT = pathlib.Path(__file__).parents[1]
OWN_IMAGES = ROOT / "docs/tutorial-own-images.md"  # reads a folder, and downloads weights
APART = [OWN_IMAGES, ROOT / "docs/command-line.md"]  # whose commands test_cli_docs runs between the blocks
PAGES = [
    page for page in sorted(ROOT.glob("docs/*.md")) if "```python" in page.read_text() and page not in APART
]


def run_blocks(page, **given):
    """Runs a page's blocks and returns their names; `given` replaces what it assigns to such names."""
    text = page.read_text()
    for name, value in given.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", text, flags=re.MULTILINE)
        assert count == 1, name
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    return namespace


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.slow
def test_tutorial_runs_on_a_folder_of_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    side = 64
    for name, photograph in zip(("temple", "flower"), load_sample_images().images):
        (tmp_path / "patches" / name).mkdir(parents=True)
        rows, columns = (np.arange(0, size - side, side) for size in photograph.shape[:2])
        for number, (row, column) in enumerate((row, column) for row in rows for column in columns[:6]):
            patch = photograph[row : row + side, column : column + side]
            keras.utils.save_img(tmp_path / "patches" / name / f"{number}.png", patch, scale=False)

    page = run_blocks(
        OWN_IMAGES,
        FOLDER="patches",
        WEIGHTS=weights_without_download(tmp_path, side),
        SIZE=(side, side),
        ALPHA=0.35,
        BATCH=16,
        EPOCHS=2,
    )

    assert page["classes"] == ["flower", "temple"]
    assert page["smaller"].count_params() < page["model"].count_params()
    assert page["report"].path("mobile").is_file()


def weights_without_download(folder, side):
    """Returns the path of MobileNetV2's weights for patches: random, but measured on them.

    As random weights stand, every layer's outputs are smaller than those before, and the network
    says the same of all pictures. Here normalisations hold the patches' statistics, and what they
    put out lies between the ends of ReLU6, where so deep a random network does not amplify rounding.
    """
    keras.utils.set_random_seed(0)
    model = tfkit.models.load_base_model("MobileNetV2", input_shape=(side, side, 3), alpha=0.35)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.name.endswith("project_BN"):
            layer.beta.assign(layer.beta + 3.0)
    patches = keras.utils.image_dataset_from_directory(
        folder / "patches", image_size=(side, side), seed=0, verbose=False
    )
    tfkit.recalibrate_batch_norm(model, patches)
    path = str(folder / "stand-in.weights.h5")
    model.save_weights(path)
    return path


@pytest.mark.slow
def test_readme_script_prunes_and_exports_a_users_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = (16, 16, 3)
    tfkit.models.build_encoder_decoder(shape, filters=(4, 4, 8, 8), output_channels=3).save("denoiser.keras")
    images = np.random.default_rng(0).random((40, *shape)).astype("float32")
    script = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[
        1
    ]
    namespace = {"x": images, "y": images}

    exec(compile(script, "README.md", "exec"), namespace)

    kernels = [np.asarray(layer.kernel) for layer in namespace["model"].layers if layer.weights]
    assert len(kernels) == 8
    for kernel in kernels:
        assert np.mean(kernel == 0) == pytest.approx(0.8, abs=0.5 / kernel.size)
    assert namespace["report"].path("mobile").is_relative_to(pathlib.Path("shipped").resolve())
    assert namespace["report"].path("mobile").is_file()


def test_links_in_readme_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
