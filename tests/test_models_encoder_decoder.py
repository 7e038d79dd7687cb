"""`models.build_encoder_decoder`: its layers, shapes and what it refuses."""

import keras
import numpy as np
import pytest

import tfkit
from tfkit.errors import ArgumentError, TfkitError

build = tfkit.models.build_encoder_decoder


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
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


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
