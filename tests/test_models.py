"""`models`: the encoder–decoder, files that are safe and whole, and weights carried over by name."""

import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tfkit.errors import ArgumentError, ArgumentTypeError, TfkitError, UnbuiltModelError, UnsafeModelError

build = tfkit.models.build_encoder_decoder
load = tfkit.models.load_base_model
transfer = tfkit.models.transfer_weights


# --- build_encoder_decoder -----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_layers_with_weights_are_numbered_encoder_and_decoder_convolutions(depth):
    model = build((16, 16, 3), filters=[2] * depth, output_channels=1)
    expected = [f"{side}_conv{i}" for side in ("encoder", "decoder") for i in range(1, depth + 1)]
    assert [layer.name for layer in model.layers if layer.weights] == expected


@pytest.mark.parametrize("filters", [(4,), (4, 6), (4, 6, 8), (2, 4, 6, 8)])
def test_the_number_of_parameters_follows_the_closed_form(filters):
    encoder = zip((3, *filters), filters)
    decoder = [(filters[i + 1] + filters[i], filters[i]) for i in reversed(range(len(filters) - 1))]
    # the first decoder layer sees the deepest features, every later one its predecessor's
    pairs = [*encoder, *decoder, (filters[0], 5)]
    model = build((16, 16, 3), filters=filters, output_channels=5)
    assert model.count_params() == sum(9 * before * after + after for before, after in pairs)


def test_each_encoder_layer_but_the_first_halves_the_size():
    model = build((16, 24, 3), filters=(2, 3, 4), output_channels=1)
    assert [model.get_layer(f"encoder_conv{i}").output.shape[1:] for i in (1, 2, 3)] == [
        (16, 24, 2),
        (8, 12, 3),
        (4, 6, 4),
    ]


def test_each_decoder_layer_doubles_the_size_up_to_the_input():
    model = build((16, 24, 3), filters=(2, 3, 4), output_channels=1)
    assert [model.get_layer(f"decoder_conv{i}").output.shape[1:] for i in (1, 2, 3)] == [
        (8, 12, 3),
        (16, 24, 2),
        (16, 24, 1),
    ]


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (20, 4)])
def test_open_sizes_take_images_of_any_multiple_of_the_strides(size):
    model = build((None, None, 3), filters=(2, 3, 4), output_channels=2)
    assert model(np.zeros((1, *size, 3), "float32")).shape == (1, *size, 2)


def test_open_sizes_compute_what_fixed_sizes_compute():
    fixed, free = (build(shape, filters=(2, 3), output_channels=2) for shape in ((8, 4, 3), (None, None, 3)))
    free.set_weights(fixed.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 8, 4, 3)).astype("float32")
    np.testing.assert_array_equal(free(x), fixed(x))


def test_one_open_size_is_enough():
    model = build((None, 8, 1), filters=(2, 2), output_channels=1)
    assert model.output_shape == (None, None, 8, 1)


def test_a_convolution_of_zeros_gives_the_output_layers_bias():
    model = build((4, 4, 1), filters=(2,), output_channels=3)
    model.get_layer("decoder_conv1").bias.assign([1.0, -2.0, 3.0])
    output = model(np.zeros((1, 4, 4, 1), "float32"))
    np.testing.assert_array_equal(output, np.broadcast_to([1.0, -2.0, 3.0], (1, 4, 4, 3)))


def test_the_output_layer_is_linear():
    model = build((4, 4, 1), filters=(2, 2), output_channels=1)
    assert model.get_layer("decoder_conv2").activation is keras.activations.linear


def test_a_new_residual_model_is_the_identity():
    model = build((8, 8, 3), filters=(2, 4), output_channels=3, residual=True)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(model(x), x)


def test_a_residual_model_adds_what_the_plain_one_computes():
    plain, residual = (build((8, 8, 3), filters=(2, 4), output_channels=3, residual=r) for r in (False, True))
    residual.set_weights(plain.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(residual(x), x + plain(x), rtol=1e-6)


def test_the_model_carries_the_given_name():
    assert build((4, 4, 1), filters=(2,), output_channels=1, name="denoiser").name == "denoiser"


def test_the_model_is_not_compiled():
    assert not build((4, 4, 1), filters=(2,), output_channels=1).compiled


def test_ranges_select_parts_of_the_encoder():
    model = build((32, 32, 1), filters=[2] * 6, output_channels=1)
    assert tfkit.select_layers(model, "encoder_conv4..encoder_conv6").paths == tuple(
        f"encoder_conv{i}" for i in (4, 5, 6)
    )


def test_the_model_survives_its_file(tmp_path):
    model = build((8, 8, 3), filters=(2, 4), output_channels=1)
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(load(tmp_path / "model.keras")(x), model(x))


@pytest.mark.parametrize("shape", [(9, 8, 3), (8, 10, 3), (None, 6, 3)], ids=str)
def test_a_size_that_cannot_be_halved_and_doubled_is_refused(shape):
    message = (
        r"Height and width must be multiples of 4, the product of the 2 strides of 2\. "
        r"Received: input_shape=\(.*, 3\)\. Pad or crop the images, or pass fewer filters"
    )
    with pytest.raises(ArgumentError, match=message):
        build(shape, filters=(2, 2, 2), output_channels=1)


def test_one_layer_takes_odd_sizes():
    assert build((9, 7, 1), filters=(2,), output_channels=1).output_shape == (None, 9, 7, 1)


@pytest.mark.parametrize("filters", [(), (4, 0), (-1,), (4, 2.5), ("4",)], ids=str)
def test_filters_that_are_no_counts_are_refused(filters):
    message = r"`filters` must hold at least one channel count, each at least 1\. Received: filters=\("
    with pytest.raises(ArgumentError, match=message):
        build((8, 8, 3), filters=filters, output_channels=1)


@pytest.mark.parametrize("channels", [0, -1, 1.5, None, "3"])
def test_output_channels_that_are_no_count_are_refused(channels):
    message = rf"`output_channels` must be at least 1\. Received: output_channels={channels!r}"
    with pytest.raises(ArgumentError, match=message):
        build((8, 8, 3), filters=(4,), output_channels=channels)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, None), (1, 8, 8, 3), ()], ids=str)
def test_a_shape_that_is_no_image_is_refused(shape):
    message = r"must be \(height, width, channels\), each at least 1; .* Received: input_shape=\("
    with pytest.raises(ArgumentError, match=message):
        build(shape, filters=(4,), output_channels=1)


@pytest.mark.parametrize("shape", [(8, 8, 0), (0, 8, 3), (8, 8, -1), (8.0, 8, 3), ("8", 8, 3)], ids=str)
def test_a_shape_of_other_values_is_refused_by_tfkit(shape):
    with pytest.raises(TfkitError, match="Received: input_shape="):
        build(shape, filters=(4, 4), output_channels=1)


def test_a_single_number_of_filters_is_refused_by_tfkit():
    with pytest.raises(TfkitError, match="Received: filters=4"):
        build((8, 8, 3), filters=4, output_channels=1)


def test_counts_may_be_numpy_integers():
    model = build((8, 8, 3), filters=np.array([2, 4]), output_channels=np.int64(3))
    assert model.output_shape == (None, 8, 8, 3)


def test_a_residual_of_other_channels_is_refused():
    message = (
        r"as many output channels as input channels\. Received: input_shape=\(8, 8, 3\), output_channels=1"
    )
    with pytest.raises(ArgumentError, match=message):
        build((8, 8, 3), filters=(4,), output_channels=1, residual=True)


# --- load_base_model ---------------------------------------------------------------------------


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


# --- transfer_weights --------------------------------------------------------------------------


def different(builder, **arguments):
    """Two models of one architecture with different weights."""
    return builder(seed=1, **arguments), builder(seed=2, **arguments)


@pytest.mark.parametrize(
    "builder",
    [
        models.dense_net,
        models.conv_net,
        models.nested_net,
        models.deep_net,
        models.shared_net,
        models.subclassed_net,
        models.sequence_net,
        models.gated_net,
    ],
)
def test_a_model_of_the_same_architecture_takes_over_every_weight(builder):
    source, target = different(builder)
    for number, variable in enumerate(source.weights):
        variable.assign(np.full(variable.shape, number + 2.0))
    transfer(source, target)
    for old, new in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_layers_of_the_same_path_never_take_over_each_others_weights():
    source, target = different(models.twins_net)
    before = target.get_weights()
    transfer(source, target)
    for own, given, kept in zip(target.get_weights(), source.get_weights(), before, strict=True):
        assert np.array_equal(own, given) or np.array_equal(own, kept)


def test_a_weight_of_the_root_model_itself_is_copied_or_recorded_as_skipped():
    source, target = different(models.root_weight_net)
    source.scale.assign([3.0, 4.0])
    record = transfer(source, target)
    assert record.skipped or np.array_equal(target.scale, source.scale)


@pytest.mark.parametrize("builder", [models.dense_net, models.nested_net, models.sequence_net])
def test_the_source_keeps_its_weights(builder):
    source, target = different(builder)
    before = source.get_weights()
    transfer(source, target)
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_every_layer_of_the_target_with_weights_is_recorded_once():
    source, target = models.dense_net((8, 4)), models.dense_net((8, 5))
    record = transfer(source, target)
    assert sorted(entry.path for entry in record.copied + record.skipped) == ["d1", "d2", "head"]


def test_a_copy_by_path_says_so():
    record = transfer(*different(models.dense_net))
    assert [(entry.path, entry.reason) for entry in record.copied] == [
        (path, "same path and same shapes") for path in ("d1", "d2", "head")
    ]


def test_nothing_is_skipped_or_unused_between_equal_models():
    record = transfer(*different(models.nested_net))
    assert (record.skipped, record.unused) == ((), ())


def test_a_layer_of_another_shape_is_skipped_with_both_shapes():
    record = transfer(models.dense_net((8, 4), outputs=2), models.dense_net((8, 4), outputs=3))
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("head", "shapes differ: kernel (4, 2) in the source, (4, 3) here")
    ]


def test_a_skipped_layer_keeps_all_its_weights():
    source, target = models.dense_net((8, 4), seed=1), models.dense_net((8, 5), seed=2)
    source.get_layer("head").bias.assign([7.0, 7.0])  # the bias alone would fit
    before = target.get_layer("head").get_weights()
    transfer(source, target)
    for old, new in zip(before, target.get_layer("head").get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_layer_that_the_source_lacks_is_skipped():
    record = transfer(models.dense_net((8,)), models.dense_net((8, 8)))
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("d2", "no layer of that name in the source")
    ]


def test_a_layer_that_the_target_lacks_is_listed_as_unused():
    assert transfer(models.dense_net((8, 8)), models.dense_net((8,))).unused == ("d2",)


def test_a_layer_without_bias_is_skipped_with_the_numbers_of_weights():
    target = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, name="d1"), layers.Dense(4, use_bias=False, name="d2")]
    )
    record = transfer(models.dense_net((8, 4)), target)
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("d2", "the source layer has 2 weights, this one 1")
    ]


def test_a_bare_backbone_fills_the_same_backbone_inside_a_larger_model():
    source, target = models.backbone(seed=1), models.nested_net(seed=2)
    transfer(source, target)
    inside = target.get_layer("wrapper").get_layer("backbone")
    for old, new in zip(source.get_weights(), inside.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_copy_by_name_names_the_path_that_it_came_from():
    record = transfer(models.nested_net(seed=1), models.backbone(seed=2))
    assert [(entry.path, entry.reason) for entry in record.copied] == [
        (name, f"same name as wrapper/backbone/{name} and same shapes") for name in ("conv1", "bn1", "conv2")
    ]


def test_a_name_that_stands_twice_in_the_source_is_skipped_with_its_paths():
    target = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="stem")], name="target"
    )
    record = transfer(models.deep_net(), target)
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("a", "the name is not unique in the source: middle/a, middle/inner/a")
    ]


def test_the_path_decides_where_a_name_stands_twice():
    source, target = different(models.deep_net)
    transfer(source, target)
    for find in (lambda m: m.get_layer("middle"), lambda m: m.get_layer("middle").get_layer("inner")):
        np.testing.assert_array_equal(find(target).get_layer("a").kernel, find(source).get_layer("a").kernel)


def test_a_subclassed_model_takes_over_the_weights_inside_its_blocks():
    record = transfer(*different(models.subclassed_net))
    assert [entry.path for entry in record.copied] == [
        "block1/conv",
        "block1/norm",
        "block2/conv",
        "block2/norm",
        "head",
    ]


def test_frozen_layers_take_over_weights_too():
    source, target = different(models.conv_net)
    target.trainable = False
    transfer(source, target)
    np.testing.assert_array_equal(target.get_weights()[0], source.get_weights()[0])


def test_weights_are_cast_to_the_targets_dtype():
    source = models.dense_net((8,), seed=1)
    target = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="d1", dtype="float16")])
    transfer(source, target)
    expected = source.get_layer("d1").get_weights()[0].astype("float16")
    np.testing.assert_array_equal(target.get_layer("d1").get_weights()[0], expected)


def test_the_same_layer_afterwards_computes_the_same():
    source, target = different(models.conv_net)
    transfer(source, target)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(target(x), source(x))


def test_models_with_nothing_in_common_are_refused():
    source = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="left")], name="source")
    target = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="right")], name="target")
    message = (
        r"At least one layer must have the same name and shapes in both models\. "
        r"Received: source='source' with left; target='target', "
        r"where right: no layer of that name in the source"
    )
    with pytest.raises(ArgumentError, match=message):
        transfer(source, target)


@pytest.mark.parametrize("position", [0, 1])
def test_something_that_is_no_model_is_refused_on_either_side(position):
    pair = [models.dense_net(), models.dense_net()]
    pair[position] = "net"
    with pytest.raises(ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model='net'"):
        transfer(*pair)


@pytest.mark.parametrize("position", [0, 1])
def test_an_unbuilt_model_is_refused_on_either_side(position):
    pair = [models.dense_net(), models.dense_net()]
    pair[position] = keras.Sequential([layers.Dense(1)], name="raw")
    with pytest.raises(UnbuiltModelError, match=r"must be built.*Received: model='raw'.*keras\.Input"):
        transfer(*pair)
