"""`models.load_base_model` from files: models that are safe and whole, weights that fit."""

import itertools
import json
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tfkit.errors import ArgumentError, ArgumentTypeError, UnsafeModelError
from tfkit.models import applications

load = tfkit.models.load_base_model


# --- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "good.keras"
    models.nested_net().save(path)
    return path


def rewrite(source, target, replace):
    """Copies a .keras file with other contents for some members; None leaves a member out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = replace.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_a_loaded_model_has_the_saved_weights(good_file):
    for loaded, saved in zip(load(good_file).get_weights(), models.nested_net().get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, saved)


@pytest.mark.parametrize("convert", [str, lambda path: path])
def test_a_path_may_be_text_or_an_object(good_file, convert):
    assert load(convert(good_file)).name == "outer"


def test_a_compiled_model_is_loaded_compiled(tmp_path):
    model = models.dense_net()
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    assert load(tmp_path / "model.keras").compiled


def lambda_net():
    stack = [layers.Lambda(lambda x: 2 * x, name="doubler"), layers.Dense(1, name="head")]
    return keras.Sequential([keras.Input((3,)), *stack], name="unsafe")


def nested_lambda_net():
    return keras.Sequential([keras.Input((3,)), lambda_net(), layers.Dense(1)])


def wrapped_lambda_net():
    inner = layers.Lambda(lambda x: 2 * x, name="doubler")
    return keras.Sequential([keras.Input((5, 3)), layers.TimeDistributed(inner, name="each")])


LAMBDA_MODELS = (lambda_net, nested_lambda_net, wrapped_lambda_net)


@pytest.mark.parametrize("build_unsafe", LAMBDA_MODELS)
def test_a_lambda_layer_is_refused_by_name_with_the_way_out(build_unsafe, tmp_path):
    build_unsafe().save(tmp_path / "unsafe.keras")
    message = (
        r"A Lambda layer runs code from the file, so it is not loaded unasked\. "
        r"Received: source='.*unsafe\.keras' with doubler\. Pass safe_mode=False if you trust"
    )
    with pytest.raises(UnsafeModelError, match=message):
        load(tmp_path / "unsafe.keras")


@pytest.mark.parametrize("build_unsafe", LAMBDA_MODELS)
def test_a_lambda_layer_is_loaded_when_asked(build_unsafe, tmp_path):
    model = build_unsafe()
    model.save(tmp_path / "unsafe.keras")
    x = np.ones((2, *model.input_shape[1:]), "float32")
    np.testing.assert_array_equal(load(tmp_path / "unsafe.keras", safe_mode=False)(x), model(x))


def test_a_lambda_as_loss_is_refused_as_unsafe(tmp_path):
    model = models.dense_net()
    model.compile("sgd", loss=lambda y_true, y_pred: keras.ops.mean(y_true - y_pred))
    model.save(tmp_path / "unsafe.keras")
    with pytest.raises(UnsafeModelError, match="safe_mode=False"):
        load(tmp_path / "unsafe.keras")


def test_a_layer_that_is_only_named_lambda_is_safe(tmp_path):
    keras.Sequential([keras.Input((3,)), layers.Dense(1, name="Lambda")]).save(tmp_path / "safe.keras")
    assert load(tmp_path / "safe.keras").layers[0].name == "Lambda"


@pytest.mark.parametrize("name", ["missing.keras", "", "MobileNetV9"])
def test_a_missing_file_is_refused(tmp_path, name):
    message = r"`source` must be .*\.keras file.*Received: source='.*', which is no file"
    with pytest.raises(ArgumentError, match=message):
        load(tmp_path / name)


def torn(source, target):
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


def empty(source, target):
    target.write_bytes(b"")


def no_config(source, target):
    rewrite(source, target, {"config.json": None})


def half_config(source, target):
    rewrite(source, target, {"config.json": zipfile.ZipFile(source).read("config.json")[:100]})


def binary_config(source, target):
    rewrite(source, target, {"config.json": b"\xff\xfe\x00"})


def empty_config(source, target):
    rewrite(source, target, {"config.json": json.dumps({})})


def no_weights(source, target):
    rewrite(source, target, {"model.weights.h5": None})


def half_weights(source, target):
    rewrite(source, target, {"model.weights.h5": zipfile.ZipFile(source).read("model.weights.h5")[:4000]})


def flipped_bit(source, target):
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        member = archive.getinfo("model.weights.h5")
    content[member.header_offset + member.file_size // 2] ^= 1
    target.write_bytes(bytes(content))


DAMAGES = (
    torn,
    empty,
    no_config,
    half_config,
    binary_config,
    empty_config,
    no_weights,
    half_weights,
    flipped_bit,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused_with_the_fix(good_file, tmp_path, damage):
    damage(good_file, tmp_path / "bad.keras")
    message = (
        r"(?s)whole \.keras file whose classes are known\. Received: source='.*bad\.keras' \(.+\)\. "
        r"Save the model again with model\.save\('name\.keras'\)"
    )
    with pytest.raises(ArgumentError, match=message):
        load(tmp_path / "bad.keras")


def test_a_file_of_another_format_is_refused(tmp_path):
    models.dense_net().save(tmp_path / "model.h5")
    with pytest.raises(
        ArgumentError, match=r"must be the path of a \.keras file\. Received: source='.*model\.h5'"
    ):
        load(tmp_path / "model.h5")


def test_a_keras_file_under_another_ending_is_refused(good_file, tmp_path):
    (tmp_path / "model.zip").write_bytes(good_file.read_bytes())
    with pytest.raises(ArgumentError, match=r"\.keras.*Received: source='.*model\.zip'"):
        load(tmp_path / "model.zip")


@pytest.mark.parametrize("name", ["missing.keras", "./MobileNetV2", "models/MobileNetV2", "net.h5"])
def test_text_with_a_dot_or_a_slash_is_a_path(name):
    with pytest.raises(ArgumentError, match=r"must be the path of a \.keras file.*, which is no file"):
        load(name)


@pytest.mark.parametrize("source", [None, 3, b"model.keras", models.dense_net])
def test_a_source_that_is_no_text_and_no_path_is_refused(source):
    message = r"`source` must be text or a path\. Received: source=.* of type "
    with pytest.raises(ArgumentTypeError, match=message):
        load(source)


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"weights": "imagenet"}, "weights='imagenet'"),
        ({"input_shape": (8, 8, 3)}, r"input_shape=\(8, 8, 3\)"),
        ({"alpha": 0.35, "pooling": "avg"}, "alpha=0.35, pooling='avg'"),
    ],
    ids=str,
)
def test_a_file_with_options_is_refused(good_file, options, received):
    message = (
        r"A \.keras file holds its own architecture and weights, so it must come without options\. "
        rf"Received: source='.*good\.keras', {received}\. Only safe_mode="
    )
    with pytest.raises(ArgumentError, match=message):
        load(good_file, **options)


# --- weights from files ------------------------------------------------------------------------


SMALL = {"input_shape": (32, 32, 3), "alpha": 0.35}


def flat_h5(source, target):
    """Rewrites a saved h5 model as the bare weights file that Keras offers for download."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        for name in old["model_weights"]:
            old.copy(old["model_weights"][name], new)
        new.attrs.update(old["model_weights"].attrs)


@pytest.fixture(scope="module")
def trained():
    """MobileNetV2 as Keras builds it, with weights like no initializer's."""
    keras.utils.set_random_seed(7)
    model = keras.applications.MobileNetV2(include_top=False, weights=None, **SMALL)
    rng = np.random.default_rng(7)
    model.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def weight_files(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    trained.save_weights(folder / "net.weights.h5")
    trained.save(folder / "net.keras")
    trained.save(folder / "whole.h5")
    flat_h5(folder / "whole.h5", folder / "flat.h5")
    return folder


FILES = ("net.weights.h5", "net.keras", "whole.h5", "flat.h5")


@pytest.mark.parametrize("name", FILES)
def test_weights_of_every_format_arrive_in_the_application(weight_files, trained, name):
    model = load("MobileNetV2", weights=weight_files / name, **SMALL)
    assert len(model.weights) == len(trained.weights)
    for loaded, saved in zip(model.get_weights(), trained.get_weights()):
        np.testing.assert_array_equal(loaded, saved)


def test_the_path_of_the_weights_may_be_text(weight_files, trained):
    model = load("MobileNetV2", weights=str(weight_files / "net.weights.h5"), **SMALL)
    np.testing.assert_array_equal(model.get_weights()[0], trained.get_weights()[0])


def test_an_application_reads_back_what_it_saved(tmp_path):
    model = load("MobileNetV2", **SMALL)
    model.save_weights(tmp_path / "own.weights.h5")
    again = load("MobileNetV2", weights=tmp_path / "own.weights.h5", **SMALL)
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(again(x), model(x))


def test_weights_are_loaded_on_top_of_a_model_file(good_file, tmp_path):
    other = models.nested_net(seed=5)
    other.save_weights(tmp_path / "other.weights.h5")
    loaded = load(good_file, weights=tmp_path / "other.weights.h5")
    for new, saved in zip(loaded.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(new, saved)


@pytest.mark.parametrize("builder", [models.dense_net, models.nested_net, models.sequence_net])
def test_weights_of_composites_and_compiled_models_fit_their_own_file(builder, tmp_path):
    model, other = builder(seed=3), builder(seed=4)
    for each in (model, other):
        each.compile("adam", "mse", metrics=["mae"])
        each.optimizer.build(each.trainable_variables)  # whose slots are in the files too
    other.save(tmp_path / "net.keras")
    model.save_weights(tmp_path / "net.weights.h5")
    loaded = load(tmp_path / "net.keras", weights=tmp_path / "net.weights.h5")
    for new, saved in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, saved)


@pytest.fixture
def no_building(monkeypatch):
    def build(*_, **__):
        raise AssertionError("the model was built before its weights file was checked")

    monkeypatch.setattr(applications.Application, "build", build)


@pytest.mark.parametrize("name", ["missing.weights.h5", "missing.keras", "imagnet", ""])
@pytest.mark.usefixtures("no_building")
def test_missing_weights_are_refused_before_the_model_is_built(tmp_path, name):
    message = (
        r"`weights` must be None, 'imagenet' or the path of a \.weights\.h5, \.h5 or \.keras file\. "
        r"Received: weights='.*', which is no file\."
    )
    with pytest.raises(ArgumentError, match=message):
        load("MobileNetV2", weights=tmp_path / name)


@pytest.mark.usefixtures("no_building")
def test_weights_of_another_format_are_refused_before_the_model_is_built(tmp_path):
    (tmp_path / "net.ckpt").write_bytes(b"weights")
    with pytest.raises(ArgumentError, match=r"weights='.*net\.ckpt', which is of another format\."):
        load("MobileNetV2", weights=tmp_path / "net.ckpt")


def damaged(reason):
    return (
        r"(?s)`weights` must be a whole file with the weights of exactly this architecture\. "
        rf"Received: weights='.*' \({reason}.*\)\. "
        r"Save them again with model\.save_weights\('name\.weights\.h5'\)"
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
@pytest.mark.usefixtures("no_building")
def test_truncated_weights_are_refused_before_the_model_is_built(weight_files, tmp_path, name, part):
    content = (weight_files / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(part * len(content))])
    with pytest.raises(ArgumentError, match=damaged("(OSError|BadZipFile): ")):
        load("MobileNetV2", weights=tmp_path / name)


@pytest.mark.usefixtures("no_building")
def test_a_flipped_bit_in_zipped_weights_is_refused(weight_files, tmp_path):
    flipped_bit(weight_files / "net.keras", tmp_path / "net.keras")
    with pytest.raises(ArgumentError, match=damaged("BadZipFile: Bad CRC")):
        load("MobileNetV2", weights=tmp_path / "net.keras")


@pytest.mark.usefixtures("no_building")
def test_a_keras_file_without_weights_is_refused(weight_files, tmp_path):
    no_weights(weight_files / "net.keras", tmp_path / "net.keras")
    with pytest.raises(ArgumentError, match=damaged("KeyError: .*model.weights.h5")):
        load("MobileNetV2", weights=tmp_path / "net.keras")


@pytest.mark.usefixtures("no_building")
def test_an_h5_file_without_weights_is_refused(tmp_path):
    h5py.File(tmp_path / "empty.weights.h5", "w").close()
    with pytest.raises(ArgumentError, match=damaged("ValueError: it holds no weights")):
        load("MobileNetV2", weights=tmp_path / "empty.weights.h5")


@pytest.mark.parametrize(
    ("name", "new_name", "reason"),
    [
        (
            "net.weights.h5",
            "net.h5",
            r"its layout is Keras 3's, for which its name must end in \.weights\.h5",
        ),
        ("flat.h5", "flat.weights.h5", r"its layout is the older, for which its name must end in \.h5 alone"),
    ],
)
@pytest.mark.usefixtures("no_building")
def test_a_renamed_weights_file_is_refused_with_the_right_name(
    weight_files, tmp_path, name, new_name, reason
):
    shutil.copy(weight_files / name, tmp_path / new_name)
    with pytest.raises(ArgumentError, match=damaged(f"ValueError: {reason}")):
        load("MobileNetV2", weights=tmp_path / new_name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("source", "options"), [("MobileNetV2", {"alpha": 0.5}), ("MobileNet", {"alpha": 0.25})], ids=str
)
def test_weights_of_another_architecture_are_refused(weight_files, name, source, options):
    message = (
        r"(?s)exactly this architecture\. Received: weights='.*' for model 'mobilenet.*' "
        r"\(ValueError: .+\)\. .* check the options, or use tfkit\.models\.transfer_weights"
    )
    with pytest.raises(ArgumentError, match=message):
        load(source, weights=weight_files / name, input_shape=(32, 32, 3), **options)


def test_weights_left_over_in_the_file_are_refused(tmp_path):
    shallow = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(4)])
    deep = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(4), layers.Dense(4)])
    shallow.save(tmp_path / "shallow.keras")
    deep.save_weights(tmp_path / "deep.weights.h5")
    with pytest.raises(ArgumentError, match=r"\(ValueError: it holds 60 numbers, the model 40\)"):
        load(tmp_path / "shallow.keras", weights=tmp_path / "deep.weights.h5")


@keras.saving.register_keras_serializable("tfkit_tests")
class Pairs(layers.Layer):
    """A layer that holds its layers in lists of lists, which older versions of Keras left out of files."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pairs = [[layers.Dense(3), layers.Dense(3)], [layers.Dense(3)]]

    def build(self, shape):
        for dense in itertools.chain(*self.pairs):
            dense.build(shape)

    def call(self, x):
        return sum(dense(x) for dense in itertools.chain(*self.pairs))


def test_weights_that_keras_would_skip_with_a_warning_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Pairs(name="pairs")])
    model.save(tmp_path / "net.keras")
    model.save_weights(tmp_path / "old.weights.h5")
    with h5py.File(tmp_path / "old.weights.h5", "a") as file:
        del file["layers/pairs/pairs/container"]
    with pytest.raises(ArgumentError, match=damaged("ValueError: Skipping nested container")):
        load(tmp_path / "net.keras", weights=tmp_path / "old.weights.h5")


@pytest.mark.parametrize("weights", [0, True, 3.5, ["net.weights.h5"]])
def test_weights_that_are_no_text_and_no_path_are_refused(weights):
    with pytest.raises(ArgumentTypeError, match=r"`weights` must be text or a path\. Received: weights="):
        load("MobileNetV2", weights=weights)
