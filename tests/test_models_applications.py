"""`models.load_base_model` with names: keras.applications that take raw images."""

import http.client
import importlib
import inspect
import pathlib
import shutil
import subprocess
import sys
import urllib.error

import keras
import numpy as np
import pytest
from keras import layers
from keras.src.backend import config as keras_config
from keras.src.utils import file_utils

import tfkit
from tfkit.errors import ArgumentError, ArgumentTypeError, DownloadError
from tfkit.models.applications import channel_scaling, find_application

load = tfkit.models.load_base_model

# One small model of every module; MobileNetV2 as small as it gets.
FAMILIES = {
    "ConvNeXtTiny": {},
    "DenseNet121": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "InceptionResNetV2": {},
    "InceptionV3": {},
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"minimalistic": True},
    "NASNetMobile": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "VGG19": {},
    "Xception": {},
}
NAMES = sorted(name for name, each in vars(keras.applications).items() if inspect.isfunction(each))
SMALL = {"input_shape": (32, 32, 3), "alpha": 0.35}


def module_of(name):
    return getattr(keras.applications, name).__module__.rpartition(".")[2]


def preprocess_of(name):
    """The public function, whose images it changes in place."""
    function = importlib.import_module(f"keras.applications.{module_of(name)}").preprocess_input
    return lambda images: function(images.copy())


def raw_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


# --- preprocessing -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_scaling_computes_what_keras_preprocesses(name):
    image = keras.Input((4, 5, 3))
    model = keras.Model(image, channel_scaling(find_application(name)).apply(image))
    x = raw_images(3, 4, 5, 3)
    np.testing.assert_allclose(model(x), preprocess_of(name)(x), rtol=1e-5, atol=1e-5)


def test_the_families_below_are_all_there_are():
    assert {module_of(name) for name in FAMILIES} == {module_of(name) for name in NAMES}


@pytest.mark.parametrize("name", FAMILIES)
def test_raw_images_give_what_keras_gives_for_preprocessed_ones(name):
    model = load(name, input_shape=(75, 75, 3), **FAMILIES[name])
    bare = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(75, 75, 3), **FAMILIES[name]
    )
    bare.set_weights(model.get_weights())
    x = raw_images(2, 75, 75, 3)
    expected = np.asarray(bare(preprocess_of(name)(x)))
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert expected.std() > 0


def test_images_of_whole_numbers_are_taken_as_they_are():
    model = load("MobileNetV2", **SMALL)
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    np.testing.assert_array_equal(model(x), model(x.astype("float32")))


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2"])
def test_half_precision_does_not_round_the_images(name, mixed_precision):
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, channel_scaling(find_application(name)).apply(image))
    x = raw_images(2, 4, 4, 3)
    np.testing.assert_allclose(model(x), preprocess_of(name)(x), rtol=1e-5, atol=1e-5)


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x**2,
        lambda x: x[..., [1, 2, 0]],
        lambda x: x - x.mean((1, 2), keepdims=True),
        lambda x: x + x[..., ::-1],
        lambda x: np.clip(x, 0, 200),
    ],
    ids=["square", "rotation", "per image", "mixture", "clipping"],
)
def test_other_preprocessing_is_refused(monkeypatch, change):
    module = sys.modules[keras.applications.MobileNetV2.__module__]
    monkeypatch.setattr(module, "preprocess_input", change)
    message = (
        r"An application's preprocessing must scale and shift each channel, in RGB or BGR order\. "
        r"Received: source='MobileNetV2', whose preprocess_input does something else\. "
        r"Build keras\.applications\.MobileNetV2 yourself"
    )
    with pytest.raises(ArgumentError, match=message):
        load("MobileNetV2", **SMALL)


# --- the graph -----------------------------------------------------------------------------------


def test_the_graph_is_flat_with_keras_names():
    model = load("MobileNetV2", **SMALL)
    bare = keras.applications.MobileNetV2(include_top=False, weights=None, **SMALL)
    ours = [layer.name for layer in model.layers]
    assert ours == ["image", "preprocess", *(layer.name for layer in bare.layers[1:])]
    assert tfkit.select_layers(model, "block_1_expand").paths == ("block_1_expand",)


def test_the_model_takes_one_raw_image_input():
    model = load("MobileNetV2", **SMALL)
    assert [(tensor.name, tensor.shape) for tensor in model.inputs] == [("image", (None, 32, 32, 3))]


@pytest.mark.filterwarnings("error")
def test_a_single_tensor_is_taken_without_a_warning():
    load("MobileNetV3Small", input_shape=(32, 32, 3))(raw_images(1, 32, 32, 3))


def test_without_a_shape_the_sizes_are_open():
    model = load("MobileNetV2", alpha=0.35)
    assert model.input_shape == (None, None, None, 3)
    assert model(raw_images(1, 64, 96, 3)).shape == (1, 2, 3, 1280)


def test_open_and_fixed_sizes_compute_the_same():
    fixed, free = load("MobileNetV2", **SMALL), load("MobileNetV2", alpha=0.35)
    free.set_weights(fixed.get_weights())
    x = raw_images(2, 32, 32, 3)
    np.testing.assert_allclose(free(x), fixed(x), rtol=1e-5, atol=1e-6 * np.abs(fixed(x)).max())


def test_the_model_is_trainable_and_not_compiled():
    model = load("MobileNetV2", **SMALL)
    assert all(layer.trainable for layer in model.layers)
    assert not model.compiled


@pytest.mark.parametrize("name", ["VGG16", "DenseNet121", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_the_model_survives_its_file_in_safe_mode(name, tmp_path):
    model = load(name, input_shape=(32, 32, 3))
    model.save(tmp_path / "model.keras")
    x = raw_images(2, 32, 32, 3)
    np.testing.assert_array_equal(load(tmp_path / "model.keras")(x), model(x))
    assert "tfkit" not in model.to_json()


def test_the_file_is_loaded_where_tfkit_is_not_imported(tmp_path):
    image = keras.Input((4, 4, 3))  # the part that tfkit adds, with the reversed channels
    model = keras.Model(image, channel_scaling(find_application("ResNet50")).apply(image))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", raw_images(2, 4, 4, 3))
    code = (
        "import keras, numpy, sys; model = keras.models.load_model('model.keras', safe_mode=True); "
        "numpy.save('y.npy', model(numpy.load('x.npy'))); assert 'tfkit' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = preprocess_of("ResNet50")(np.load(tmp_path / "x.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_reversed_channels_survive_the_export(precision, tmp_path):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(channel_scaling(find_application("VGG16")).apply(image))
    data = raw_images(16, 8, 8, 3) * np.float32([1.0, 0.5, 0.1])
    tfkit.export_tflite(  # which compares the file with Keras
        keras.Model(image, x), tmp_path / "m.tflite", precision=precision, representative_data=data
    )


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenetv2", "MobileNet_V2", "mobilenet-v2", "MOBILENETV2"])
def test_case_underscores_and_hyphens_do_not_matter(name):
    assert load(name, **SMALL).get_layer("block_1_expand")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_found(name):
    assert find_application(name).constructor is getattr(keras.applications, name)


def test_an_unknown_name_is_refused_with_the_nearest_three():
    message = (
        r"`source` must be the name of a keras\.applications model or the path of a \.keras file\. "
        r"Received: source='MobileNetV9'\. Nearest names: MobileNetV2, MobileNet, MobileNetV3\w+\."
    )
    with pytest.raises(ArgumentError, match=message):
        load("MobileNetV9")


@pytest.mark.parametrize("name", ["", "imagenet_utils", "resnet50 v2", "keras"])
def test_what_is_no_model_is_refused_with_three_names(name):
    with pytest.raises(ArgumentError, match=rf"source='{name}'\. Nearest names: \w+, \w+, \w+\.$"):
        load(name)


# --- options -------------------------------------------------------------------------------------


def test_options_go_to_the_constructor():
    assert load("MobileNetV2", pooling="avg", **SMALL).output_shape == (None, 1280)


def test_the_classifier_is_built_when_asked():
    model = load("MobileNetV2", include_top=True, classes=7, **SMALL)
    assert model.output_shape == (None, 7)


@pytest.mark.parametrize("source", ["MobileNetV2", "EfficientNetV2B0"])
def test_a_name_changes_the_model_alone(source):
    named, plain = (load(source, input_shape=(32, 32, 3), **more) for more in ({"name": "net"}, {}))
    named.set_weights(plain.get_weights())
    x = raw_images(1, 32, 32, 3)
    assert named.name == "net"
    np.testing.assert_array_equal(named(x), plain(x))


def test_an_unknown_option_is_refused_with_the_known_ones():
    message = (
        r"Options must be arguments of keras\.applications\.VGG16\. Received: alpha=0\.5, depth=3\. "
        r"Accepted: classes, classifier_activation, include_top, name, pooling\."
    )
    with pytest.raises(ArgumentError, match=message):
        load("VGG16", alpha=0.5, depth=3)


def test_an_input_of_ones_own_is_refused():
    with pytest.raises(ArgumentError, match=r"Received: input_tensor=.*Accepted: alpha, classes"):
        load("MobileNetV2", input_tensor=keras.Input((32, 32, 3)))


@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_a_network_without_its_preprocessing_is_refused(name):
    message = (
        r"The preprocessing must stay inside the model, so that it takes raw images\. "
        rf"Received: include_preprocessing=False\. Leave it out, or call keras\.applications\.{name} itself"
    )
    with pytest.raises(ArgumentError, match=message):
        load(name, include_preprocessing=False)


@pytest.mark.parametrize("options", [{"pooling": "sum"}, {"pooling": "avg", "include_top": True}], ids=str)
def test_pooling_that_keras_would_ignore_is_refused(options):
    message = r"`pooling` must be None, 'avg' or 'max', and None with include_top=True\. Received: pooling="
    with pytest.raises(ArgumentError, match=message):
        load("MobileNetV2", **options, **SMALL)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("MobileNetV2", {"classes": 5}),
        ("VGG16", {"classifier_activation": None}),
        ("MobileNet", {"dropout": 0.5}),
        ("MobileNetV3Large", {"dropout_rate": 0.5}),
    ],
    ids=str,
)
def test_options_of_a_classifier_that_is_not_built_are_refused(name, option):
    message = (
        r"Options of the classifier must come with include_top=True\. "
        rf"Received: {next(iter(option))}=.*\. Use tfkit\.models\.attach_head"
    )
    with pytest.raises(ArgumentError, match=message):
        load(name, **option)


@pytest.mark.parametrize("name", ["", "a/b", 3])
def test_a_bad_model_name_is_refused(name):
    with pytest.raises(
        ArgumentError, match=rf"`name` must be a model name without '/'\. Received: name={name!r}"
    ):
        load("MobileNetV2", name=name)


@pytest.mark.parametrize("shape", [32, "323", {32: 3}], ids=str)
def test_a_shape_that_is_no_sequence_is_refused(shape):
    message = r"`input_shape` must be a sequence \(height, width, 3\), or None\. Received: input_shape="
    with pytest.raises(ArgumentTypeError, match=message):
        load("MobileNetV2", input_shape=shape)


@pytest.mark.parametrize(
    "shape",
    [(32, 32), (32, 32, 1), (3, 32, 32), (32, 32, None), (0, 32, 3), (32.0, 32, 3), (1, 32, 32, 3)],
    ids=str,
)
def test_a_shape_that_is_no_rgb_image_is_refused(shape):
    message = (
        r"`input_shape` must be \(height, width, 3\), sizes at least 1 or None, for RGB images\. "
        r"Received: input_shape=\("
    )
    with pytest.raises(ArgumentError, match=message):
        load("MobileNetV2", input_shape=shape)


def test_a_shape_may_be_a_list():
    assert load("MobileNetV2", input_shape=[32, 48, 3], alpha=0.35).input_shape == (None, 32, 48, 3)


@pytest.mark.parametrize("shape", [None, (None, 224, 3)], ids=str)
def test_a_classifier_without_fixed_sizes_is_refused(shape):
    message = (
        r"With include_top=True the sizes must be fixed\. "
        r"Received: source='VGG16', input_shape=.*\. Pass \(height, width, 3\)"
    )
    with pytest.raises(ArgumentError, match=message):
        load("VGG16", include_top=True, input_shape=shape)


@pytest.mark.parametrize(
    ("name", "shape", "options", "reason"),
    [
        ("InceptionV3", (74, 75, 3), {}, "at least 75x75"),
        ("Xception", (70, 71, 3), {}, "at least 71x71"),
        ("MobileNetV2", (31, 32, 3), {}, "at least 32x32"),
        ("MobileNetV2", (32, 32, 3), {"alpha": "wide"}, "str"),
        ("NASNetMobile", (64, None, 3), {}, "NoneType"),
    ],
)
def test_what_the_constructor_refuses_is_an_argument_error(name, shape, options, reason):
    message = (
        r"(?s)The shape and the options must suit the application\. "
        rf"Received: source='{name}', input_shape=\(.*, weights=None, options=.* "
        rf"\((Value|Type)Error: .*{reason}"
    )
    with pytest.raises(ArgumentError, match=message):
        load(name, input_shape=shape, **options)


@pytest.mark.parametrize("shape", [None, (None, None, 3)], ids=str)
def test_a_network_that_is_wired_for_one_size_is_refused_without_it(shape):
    message = (
        r"NASNetMobile must be built for fixed sizes\. "
        r"Received: source='NASNetMobile', input_shape=.*\. Pass, for example, input_shape=\(\d+, 224, 3\)\."
    )
    with pytest.raises(ArgumentError, match=message):
        load("NASNetMobile", input_shape=shape)


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(
            ArgumentError, match=r"must be built with channels last\. Received: source='VGG16'"
        ):
            load("VGG16")
    finally:
        keras.config.set_image_data_format("channels_last")


# --- weights="imagenet" --------------------------------------------------------------------------


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    """Sets what happens in place of a download; Keras's cache is empty."""
    monkeypatch.setattr(keras_config, "_KERAS_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return lambda action: monkeypatch.setattr(file_utils, "urlretrieve", action)


def failing(error):
    def retrieve(*_, **__):
        raise error

    return retrieve


ERRORS = (
    urllib.error.URLError("no route to host"),
    urllib.error.HTTPError("https://example.org", 403, "Forbidden", None, None),
    TimeoutError("timed out"),
    http.client.IncompleteRead(b""),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failed_download_names_the_ways_out(fetch, error):
    fetch(failing(error))
    message = (
        r"(?s)The ImageNet weights must be in Keras's cache or be downloadable, whole\. "
        r"Received: source='MobileNetV2', weights='imagenet' \(.+\)\. "
        r"Pass weights= the path of a local weights file, or None for random weights\."
    )
    with pytest.raises(DownloadError, match=message) as caught:
        load("MobileNetV2", weights="imagenet", alpha=0.35, input_shape=(96, 96, 3))
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"], ids=["no checksum", "checksum"])
def test_a_damaged_download_is_a_failed_one(fetch, name):
    fetch(lambda _, target, *__: pathlib.Path(target).write_bytes(b"half of it"))
    with pytest.raises(DownloadError, match=rf"Received: source='{name}', weights='imagenet'"):
        load(name, weights="imagenet", input_shape=(224, 224, 3))


def test_options_without_imagenet_weights_are_no_failed_download(fetch):
    fetch(failing(AssertionError("nothing is to be fetched")))
    with pytest.raises(ArgumentError, match=r"weights='imagenet', options=.*alpha must be one of"):
        load("MobileNetV2", weights="imagenet", alpha=0.4, input_shape=(96, 96, 3))


def test_other_errors_stay_what_they_are(monkeypatch):
    module = sys.modules[keras.applications.MobileNetV2.__module__]
    monkeypatch.setattr(module, "_inverted_res_block", failing(MemoryError("too large")))
    with pytest.raises(MemoryError, match="too large"):
        load("MobileNetV2", **SMALL)


def test_efficientnets_imagenet_file_gives_the_same_model_from_a_path(fetch, monkeypatch, tmp_path):
    # Such a file holds standard deviations as variances. Keras adds the layer that makes up for
    # it to the graph under weights="imagenet" alone.
    bare = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    normalization = next(each for each in bare.layers if isinstance(each, layers.Normalization))
    statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0)
    normalization.set_weights([np.array(each) for each in statistics])
    bare.save(tmp_path / "efficientnetb0_notop.h5")
    fetch(lambda _, target, *__: shutil.copy(tmp_path / "efficientnetb0_notop.h5", target))
    monkeypatch.setattr(file_utils, "validate_file", lambda *_, **__: True)

    online = load("EfficientNetB0", weights="imagenet", input_shape=(32, 32, 3))
    local = load("EfficientNetB0", weights=tmp_path / "efficientnetb0_notop.h5", input_shape=(32, 32, 3))
    x = raw_images(2, 32, 32, 3)
    np.testing.assert_allclose(local(x), online(x), rtol=1e-4, atol=1e-5 * np.abs(online(x)).max())

    local.save_weights(tmp_path / "corrected.weights.h5")
    again = load("EfficientNetB0", weights=tmp_path / "corrected.weights.h5", input_shape=(32, 32, 3))
    np.testing.assert_array_equal(again(x), local(x))
