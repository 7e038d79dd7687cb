"""Data as users bring them, straight through every function that takes data.

A folder of pictures read by Keras, and pairs of picture and mask; both in batches, the last one
smaller. A function that joins `tfkit.__all__` must be entered in one of the two tables below.
"""

import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit

SIDE, SAMPLES, BATCH = 16, 20, 8
PROVEN = 16  # samples that an export compares
SPACE = tfkit.SearchSpace(learning_rate=(1e-4, 1e-2))


def folder_of_pictures(path):
    random = np.random.default_rng(0)
    for number in range(SAMPLES):
        folder = path / ("bright" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        picture = random.integers(0, 128, (SIDE, SIDE, 3)) + 127 * (number % 2)
        keras.utils.save_img(folder / f"{number}.png", picture, scale=False)
    return keras.utils.image_dataset_from_directory(
        path, image_size=(SIDE, SIDE), batch_size=BATCH, seed=0, shuffle=False, verbose=False
    )


def pairs_with_masks(_):
    pictures = np.random.default_rng(0).uniform(0, 255, (SAMPLES, SIDE, SIDE, 3)).astype("float32")
    masks = (pictures[..., 0] > 128).astype("uint8")
    return tf.data.Dataset.from_tensor_slices((pictures, masks)).batch(BATCH)


def build(kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 3, padding="same", name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    if kind == "folder":
        outputs = layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))
        metric = keras.metrics.SparseCategoricalAccuracy(name="score")
    else:
        outputs = layers.Conv2D(2, 1, name="head")(x)
        metric = keras.metrics.MeanIoU(2, sparse_y_pred=False, name="score")
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=[metric])
    return model


class Brought:
    """What a user has: data of one kind, and a model for them."""

    def __init__(self, kind, path):
        self.kind = kind
        self.path = path
        self.data = {"folder": folder_of_pictures, "masks": pairs_with_masks}[kind](path / "pictures")
        self.x, self.y = (np.concatenate(part) for part in zip(*self.data.as_numpy_iterator()))
        self.artifact = tfkit.export_tflite(
            self.model(), path / "model.tflite", precision="int8", representative_data=self.data
        )

    def model(self):
        return build(self.kind)


@pytest.fixture(scope="module")
def brought(request, tmp_path_factory):
    found = Brought(request.param, tmp_path_factory.mktemp(request.param))
    assert [len(y) for _, y in found.data] == [8, 8, 4]
    return found


def settings(model):
    """What the user compiled with."""
    config = model.get_compile_config()
    return config["loss"], config["metrics"]


def fit_cached(brought):
    model = brought.model()
    tfkit.configure_base_model(model, "head")
    history = tfkit.fit_cached(model, brought.data, validation_data=brought.data, verbose=0, strict=True)
    now = model.evaluate(brought.data, verbose=0, return_dict=True)
    assert history.history["val_score"][-1] == pytest.approx(now["score"], abs=1e-6)
    assert history.history["val_loss"][-1] == pytest.approx(now["loss"], rel=1e-4)
    return model


def compare_unfreezing(brought):
    table = tfkit.compare_unfreezing(
        brought.model,
        {"head": "head"},
        brought.data,
        brought.data,
        epochs=1,
        objective="val_score",
        mode="max",
    )
    assert table.val_score.between(0, 1).all()


def find_learning_rate(brought):
    model = brought.model()
    before = model.get_weights()
    found = tfkit.find_learning_rate(model, brought.data, steps=10, stop=1e-2)
    # the first rate changes nothing yet: the first batch's loss is that of the model itself, in training
    first, target = next(iter(brought.data))
    expected = model.loss(target, model(first, training=True))
    model.set_weights(before)
    assert found.table.loss.iloc[0] == pytest.approx(float(expected), rel=1e-4)
    return model


def search(brought):
    models = []

    def make():
        models.append(brought.model())
        return models[-1]

    result = tfkit.search(
        make,
        brought.data,
        validation_data=brought.data,
        space=SPACE,
        max_trials=1,
        epochs=1,
        directory=brought.path / "search",
        seed=0,
        verbose=0,
    )
    assert result.table.status.tolist() == ["completed"]
    assert {"score", "val_score"} <= {*result.history}
    return models[0]


def plan_channel_pruning(brought):
    model = brought.model()
    for criterion in ("activation", "taylor"):
        plan, same = (
            tfkit.plan_channel_pruning(
                model, ratio=0.5, multiple_of=1, criterion=criterion, data=data, batch_size=BATCH
            )
            for data in (brought.data, (brought.x, brought.y))
        )
        assert plan.groups == same.groups
        assert plan.table.set_index("group").channels_after["conv"] < 8
    return model


def prune_channels(brought):
    model = tfkit.prune_channels(
        brought.model(), ratio=0.5, multiple_of=1, criterion="taylor", data=brought.data
    )
    assert model.get_layer("conv").filters == 4


def prune_channels_gradually(brought):
    done = tfkit.prune_channels_gradually(
        brought.model(), brought.data, validation_data=brought.data, ratio=0.5, multiple_of=1, steps=1
    )
    assert done.table.score.iloc[-1] == pytest.approx(done.model.evaluate(brought.data, verbose=0)[1])
    assert done.model.get_layer("conv").filters == 4
    return done.model


def recalibrate_batch_norm(brought):
    model = brought.model()
    tfkit.recalibrate_batch_norm(model, brought.data)
    scaled = tf.nn.conv2d(brought.x / np.float32(255), model.get_layer("conv").kernel, 1, "SAME")
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, np.mean(scaled, axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, np.var(scaled, axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
    return model


def prune_low_magnitude(brought):
    model = brought.model()
    tfkit.prune_low_magnitude(model, tfkit.ConstantSparsity(0.5, begin_step=1, frequency=1))
    model.fit(brought.data, validation_data=brought.data, shuffle=False, verbose=0)
    kernel = np.asarray(model.get_layer("conv").kernel)
    assert np.count_nonzero(kernel) == kernel.size / 2
    return model


def layer_sensitivity(brought):
    model = brought.model()
    table = tfkit.layer_sensitivity(
        model,
        lambda each: each.evaluate(brought.data, verbose=0, return_dict=True)["score"],
        sparsities=[0.5],
        layers="conv",
    )
    assert table.score.between(0, 1).all()
    return model


def export_saved_model(brought):
    model = brought.model()
    artifact = tfkit.export_saved_model(model, brought.path / "saved", representative_data=brought.data)
    assert artifact.parity.samples == PROVEN
    return model


def export_tflite(brought):
    assert brought.artifact.precision == "int8"
    assert brought.artifact.parity.samples == PROVEN


def export(brought):
    seen = []

    def evaluate(predict):
        seen.append(predict(brought.data))
        return -keras.losses.sparse_categorical_crossentropy(brought.y, seen[-1], True).numpy().mean()

    model = brought.model()
    report = tfkit.export(
        model,
        brought.path / "shipped",
        targets="mobile",
        representative_data=brought.data,
        evaluate=evaluate,
        largest_drop=0.5,
        runs=0,
        verbose=0,
    )
    assert report.path("mobile").is_file()
    np.testing.assert_allclose(seen[0], model(brought.x), atol=1e-5)
    assert {each.shape for each in seen} == {model(brought.x).shape}
    return model


def check_parity(brought):
    model = brought.model()
    assert tfkit.check_parity(model, brought.artifact, brought.data).samples == SAMPLES
    return model


def quantization_error(brought):
    model = brought.model()
    table, same = (
        tfkit.quantization_error(model, brought.artifact, data) for data in (brought.data, brought.x)
    )
    assert table.equals(same)
    return model


def artifact_predicts(brought):
    np.testing.assert_array_equal(brought.artifact.predict(brought.data), brought.artifact.predict(brought.x))


TAKE_DATA = {
    "Artifact": artifact_predicts,
    **{
        each.__name__: each
        for each in (
            check_parity,
            compare_unfreezing,
            export,
            export_saved_model,
            export_tflite,
            find_learning_rate,
            fit_cached,
            layer_sensitivity,
            plan_channel_pruning,
            prune_channels,
            prune_channels_gradually,
            prune_low_magnitude,
            quantization_error,
            recalibrate_batch_norm,
            search,
        )
    },
}
TAKE_NONE = {
    *("add_weight_penalty", "configure_base_model", "set_learning_rate_multipliers", "set_weight_decay"),
    *("layer_table", "select_layers", "sparsity_table", "training_table", "flops_table", "zeros_kept"),
    *("explain_deployment", "explain_tflite", "make_sparse_ready", "quantize_weights"),
    *("prune_now", "prune_scope", "strip_pruning", "plot_sensitivity", "recommend_trainable_layers"),
    "benchmark",  # one batch, to be timed
}


def functions():
    public = {name: getattr(tfkit, name) for name in tfkit.__all__}
    return {name for name, each in public.items() if inspect.isfunction(each) or name == "export"}


def test_every_function_is_entered():
    assert functions() == {*TAKE_DATA} - {"Artifact"} | TAKE_NONE


# what both kinds reach by the same lines, and takes long: one kind will do
ONCE = {"export": "folder", "export_saved_model": "masks"}
CALLS = [
    (kind, name) for kind in ("folder", "masks") for name in sorted(TAKE_DATA) if ONCE.get(name, kind) == kind
]


@pytest.mark.parametrize(("brought", "name"), CALLS, indirect=["brought"])
def test_data_go_straight_through(brought, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`shuffle=True` was passed")
        model = TAKE_DATA[name](brought)
    if model is not None:
        assert settings(model) == settings(brought.model())


def test_augmentation_inside_a_model_stays_out_of_its_files(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            layers.RandomFlip("horizontal"),
            layers.RandomZoom((-0.2, 0.0)),
            layers.RandomColorJitter((0, 255), brightness_factor=0.2, hue_factor=0.1),
            layers.Conv2D(4, 3),
        ]
    )
    artifact = tfkit.export_tflite(model, tmp_path / "model.tflite")
    assert tfkit.explain_tflite(artifact.path).operation.tolist() == ["CONV_2D"]
