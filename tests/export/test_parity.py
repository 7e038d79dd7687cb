"""The comparison itself: its formulas, what it runs, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import layers

import tfkit
from tests import models
from tests.export.test_signature import net, pair_net
from tfkit.export import parity as parity_module
from tfkit.export.parity import require_parity
from tfkit.export.runtime import kind_of, load_runner, run_samples

RNG = np.random.default_rng(0)
X = RNG.random((20, 6), dtype="float32")
VALUES = st.floats(-100, 100, width=32)


def identity(outputs=1):
    """A model that gives back its input, `outputs` times."""
    inputs = keras.Input((3,))
    return keras.Model(inputs, [layers.Identity()(inputs) for _ in range(outputs)])


class Fake:
    """A runner whose outputs are its input, each changed by a function."""

    def __init__(self, *changes, batch=1):
        self.changes, self.batch, self.seen = changes, batch, []

    def __call__(self, arrays):
        self.seen.append(len(arrays[0]))
        return [change(arrays[0].astype("float64")) for change in self.changes]

    def zeros(self):
        return [np.zeros((self.batch, 3), "float32")]

    def sizes(self):
        return [(self.batch, 3)]


def compare(model, run, arrays, tolerance):
    """The comparison with a runner in this process."""
    return parity_module.compare(model, lambda samples: run_samples(run, samples), arrays, tolerance)


def parity(relative_error, tolerance=0.5):
    return tfkit.Parity(1.0, relative_error, 1.0, tolerance, 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One model in every form: name -> artifact."""
    folder = tmp_path_factory.mktemp("exported")
    artifacts = {"saved_model": tfkit.export_saved_model(net(), folder / "model")}
    for precision in ("float32", "float16", "int8"):
        artifacts[precision] = tfkit.export_tflite(
            net(), folder / f"{precision}.tflite", precision=precision, representative_data=X
        )
    return artifacts


# The formulas.


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float32, (4, 3), elements=VALUES), hnp.arrays(np.float64, (4, 3), elements=VALUES))
def test_the_errors_follow_their_formulas(x, error):
    x[0, 0] = 1.0  # the relative error has a scale
    rows = iter(error)
    result = compare(identity(), Fake(lambda values: values + next(rows)), [x], 1e-5)
    assert result.max_abs_error == pytest.approx(np.abs(error).max())
    assert result.relative_error == pytest.approx(np.abs(error).max() / np.abs(x).max())
    assert result.rms_error == pytest.approx(np.sqrt(np.mean(error**2)))


def test_the_error_and_the_scale_run_over_all_outputs():
    x = np.float32([[1, 2, 4]])
    result = compare(identity(2), Fake(lambda v: v + 0.5, lambda v: v - 1.0), [x], 1e-5)
    assert result == tfkit.Parity(1.0, 0.25, pytest.approx(np.sqrt((0.25 + 1) / 2)), 1e-5, 1)


def test_answers_are_kept_for_the_same_samples_of_the_same_model_only():
    asked = []

    class Noting(layers.Layer):
        def call(self, x):
            asked.append(1)
            return x

    inputs = keras.Input((3,))
    one, two = (keras.Model(inputs, Noting()(inputs)) for _ in range(2))
    asked.clear()
    x = RNG.random((4, 3), dtype="float32")
    with parity_module.remembering():
        for model, array in ((one, x), (one, x.copy()), (two, x), (one, x + 1)):
            assert compare(model, Fake(lambda a: a), [array], 1e-6).passed
    assert len(asked) == 4 * 3  # the copy was not asked for again
    compare(one, Fake(lambda a: a), [x], 1e-6)
    assert len(asked) == 4 * 4


def test_outputs_that_are_all_zero_agree_only_with_zeros():
    zeros = np.zeros((2, 3), "float32")
    assert compare(identity(), Fake(lambda v: v), [zeros], 0.1).relative_error == 0.0
    assert compare(identity(), Fake(lambda v: v + 1e-9), [zeros], 0.1).relative_error == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_no_number_never_passes(value):
    for changes in [lambda v: v + value, lambda v: np.where(v > 2, value, v)]:
        assert not compare(identity(), Fake(changes), [np.float32([[1, 2, 3]])], 1e9).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_whose_own_output_is_no_number_never_passes(value):
    assert not compare(identity(), Fake(lambda v: v), [np.float32([[1, 2, value]])], 1e9).passed


@pytest.mark.parametrize(
    "change", [lambda v: v[:, :1], lambda v: v[0], lambda v: v[None]], ids=["width", "rank 1", "rank 3"]
)
def test_outputs_of_another_shape_never_pass(change):
    """Broadcasting must not hide it: all three outputs of this sample are the same."""
    try:
        passed = compare(identity(), Fake(change), [np.ones((1, 3), "float32")], 1.0).passed
    except tfkit.ExportError:
        passed = False
    assert not passed


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 6), (2, [2] * 3), (4, [4] * 2)])
def test_samples_go_through_in_batches_of_the_artifacts_size(batch, sizes):
    run = Fake(lambda v: v, batch=batch)
    result = compare(identity(), run, [np.ones((6, 3), "float32")], 1e-5)
    assert (run.seen, result.samples) == (sizes, 6)


@pytest.mark.parametrize(
    ("error", "verdict"), [(0.0, True), (0.5, True), (0.51, False), (np.inf, False), (np.nan, False)]
)
def test_what_is_within_the_tolerance_passes(error, verdict):
    assert parity(error).passed is verdict


def test_require_parity_gives_back_what_passed():
    assert require_parity(parity(0.1), "int8") == parity(0.1)


def test_require_parity_refuses_what_did_not_pass():
    with pytest.raises(
        tfkit.ParityError, match=r"int8 .* agree .*0\.5.*Received: relative error 0\.75 on 1 .*Nothing"
    ):
        require_parity(parity(0.75), "int8")


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("float32", "random"),
        ("float16", "65504"),
        ("int8", "representative_data"),
        ("int8_weights", "float16"),
    ],
)
def test_require_parity_tells_what_to_do_for_this_precision_alone(precision, remedy):
    with pytest.raises(tfkit.ParityError, match=rf"Nothing was written\. [^.]*{remedy}[^.]*\.$"):
        require_parity(parity(0.75), precision)


# check_parity.


@pytest.mark.parametrize("form", ["saved_model", "float32", "float16", "int8"])
def test_an_artifact_agrees_with_its_model(exported, form):
    result = tfkit.check_parity(net(), exported[form], X)
    assert result.passed
    assert result.samples == 20


@pytest.mark.parametrize("form", ["saved_model", "float32"])
def test_the_errors_can_be_recomputed_by_hand(exported, form):
    model = net()
    model.get_layer("head").kernel.assign_add(np.full((8, 2), 0.01))
    error = np.abs(exported[form].predict(X) - model(X))
    result = tfkit.check_parity(model, exported[form], X)
    assert result.max_abs_error == pytest.approx(error.max(), rel=1e-4)
    assert result.relative_error == pytest.approx(error.max() / np.abs(model(X)).max(), rel=1e-4)
    assert result.rms_error == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)


@pytest.mark.parametrize("form", ["saved_model", "float32", "float16", "int8"])
def test_weights_that_changed_after_the_export_are_noticed(exported, form):
    model = net()
    model.get_layer("head").bias.assign([3.0, -3.0])
    assert not tfkit.check_parity(model, exported[form], X).passed


@pytest.mark.parametrize(
    ("form", "tolerance"), [("saved_model", 1e-5), ("float32", 1e-5), ("float16", 1e-2), ("int8", 0.25)]
)
def test_the_tolerance_follows_the_precision(exported, form, tolerance):
    assert tfkit.check_parity(net(), exported[form], X).tolerance == tolerance


@pytest.mark.parametrize("wrap", [str, lambda path: path], ids=["str", "Path"])
def test_a_bare_path_counts_as_float32(exported, wrap):
    assert tfkit.check_parity(net(), wrap(exported["int8"].path), X).tolerance == 1e-5


@pytest.mark.parametrize(("tolerance", "verdict"), [(1.0, True), (0.0, False)])
def test_a_given_tolerance_decides(exported, tolerance, verdict):
    assert tfkit.check_parity(net(), exported["int8"], X, tolerance=tolerance).passed is verdict


def test_no_more_than_128_samples_are_compared(exported):
    assert tfkit.check_parity(net(), exported["float32"], np.ones((200, 6))).samples == 128


@pytest.mark.parametrize(
    "x",
    [X.astype("float64"), [X], tf.data.Dataset.from_tensor_slices((X, X)).batch(8)],
    ids=["float64", "list", "dataset"],
)
def test_inputs_may_come_in_any_form(exported, x):
    assert tfkit.check_parity(net(), exported["float32"], x).samples == 20


def test_several_inputs_are_compared(tmp_path):
    model, x = pair_net(), [RNG.random((4, 2)), RNG.random((4, 3))]
    assert tfkit.check_parity(model, tfkit.export_tflite(model, tmp_path / "model.tflite"), x).passed


def test_a_file_of_a_larger_batch_is_compared(tmp_path):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv2D(3, 3)(inputs))))
    artifact = tfkit.export_tflite(model, tmp_path / "model.tflite", batch_size=2)
    assert tfkit.check_parity(model, artifact, RNG.random((4, 4, 4, 2))).passed


def test_the_model_is_compared_in_inference_mode(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dropout(0.9)(inputs))
    assert (
        tfkit.check_parity(model, tfkit.export_tflite(model, tmp_path / "model.tflite"), X).max_abs_error == 0
    )


# What is refused.


def test_something_that_is_no_model_is_refused(exported):
    with pytest.raises(
        tfkit.ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model=7.*Load a file"
    ):
        tfkit.check_parity(7, exported["float32"], X)


def test_inputs_that_do_not_fit_are_refused(exported):
    with pytest.raises(
        tfkit.ArgumentError, match=r"`x` must hold .*Received: x with .*\(5,\).*takes \[\(6,\)\]"
    ):
        tfkit.check_parity(net(), exported["float32"], X[:, :5])


def test_inputs_of_different_length_are_refused(tmp_path):
    artifact = tfkit.export_tflite(pair_net(), tmp_path / "model.tflite")
    with pytest.raises(tfkit.ArgumentError, match=r"`x` must .*Received: x"):
        tfkit.check_parity(pair_net(), artifact, [np.ones((4, 2)), np.ones((3, 3))])


def test_a_missing_artifact_is_refused(tmp_path):
    with pytest.raises(
        tfkit.ArgumentError, match=r"\.tflite file or a SavedModel.*Received: path=.*which is neither"
    ):
        tfkit.check_parity(net(), tmp_path / "model.tflite", X)


@pytest.mark.parametrize("form", ["saved_model", "float32"])
@pytest.mark.parametrize("other", [{"inputs": 5}, {"outputs": 3}], ids=["inputs", "outputs"])
def test_the_artifact_of_another_model_does_not_pass(exported, form, other):
    """check_parity documents ExportError for what the runtime cannot run."""
    model = models.dense_net(units=(8,), **other)
    model = keras.Model(model.inputs, model.outputs)
    try:
        passed = tfkit.check_parity(model, exported[form], X[:, : model.inputs[0].shape[1]]).passed
    except tfkit.ExportError:
        passed = False
    assert not passed


def test_an_artifact_with_another_number_of_outputs_does_not_pass(exported):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    with pytest.raises(tfkit.ExportError):
        tfkit.check_parity(model, exported["float32"], X)


# kind_of and load_runner.


def test_an_artifact_is_known_by_its_content_not_its_name(exported, tmp_path):
    (tmp_path / "model.bin").write_bytes(exported["float32"].path.read_bytes())
    assert kind_of(tmp_path / "model.bin") == "tflite"
    assert kind_of(exported["saved_model"].path) == "saved_model"


@pytest.mark.parametrize("make", ["missing", "empty", "text", "folder"])
@pytest.mark.parametrize("call", [kind_of, load_runner])
def test_a_path_that_is_no_artifact_is_refused(tmp_path, make, call):
    path = tmp_path / "model.tflite"
    if make == "folder":
        path.mkdir()
    elif make != "missing":
        path.write_bytes(b"" if make == "empty" else b"no artifact at all")
    with pytest.raises(
        tfkit.ArgumentError, match=r"\.tflite file or a SavedModel.*Received: path=.*which is neither"
    ):
        call(path)


def cut_tflite(artifacts, path):
    path.write_bytes(artifacts["float32"].path.read_bytes()[:300])


def broken_saved_model(artifacts, path):
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"no protocol buffer")


def saved_model_without_weights(artifacts, path):
    path.mkdir()
    (path / "saved_model.pb").write_bytes((artifacts["saved_model"].path / "saved_model.pb").read_bytes())


def saved_model_without_signature(artifacts, path):
    tf.saved_model.save(tf.Module(), str(path))


@pytest.mark.parametrize(
    "make", [cut_tflite, broken_saved_model, saved_model_without_weights, saved_model_without_signature]
)
def test_an_artifact_that_cannot_be_loaded_is_an_export_error(exported, tmp_path, make):
    make(exported, tmp_path / "model")
    with pytest.raises(
        tfkit.ExportError, match=r"(?s)able to load the artifact.*Received: path=.*Export it again"
    ):
        load_runner(tmp_path / "model")


def test_zeros_fit_a_file_of_a_larger_batch(tmp_path):
    artifact = tfkit.export_tflite(net(), tmp_path / "model.tflite", batch_size=3)
    (zeros,) = load_runner(artifact.path).zeros()
    assert (zeros.shape, zeros.dtype, np.count_nonzero(zeros)) == ((3, 6), "float32", 0)


def test_zeros_take_one_for_open_sizes(exported):
    (zeros,) = load_runner(exported["saved_model"].path).zeros()
    assert (zeros.shape, zeros.dtype) == ((1, 6), "float32")


def test_each_output_is_judged_on_its_own_scale():
    x = np.float32([[1, 2, 4]])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [layers.Rescaling(1e6)(inputs), layers.Identity()(inputs)])
    result = compare(model, Fake(lambda v: v * 1e6, lambda v: v + 1), [x], 1e-5)
    assert result.relative_error == pytest.approx(0.25)


@pytest.mark.parametrize("tolerance", [-1, "a", float("nan")])
def test_a_tolerance_that_is_no_limit_is_refused(exported, tolerance):
    with pytest.raises(tfkit.ArgumentError, match=r"`tolerance` must be a number.*Received: tolerance="):
        tfkit.check_parity(net(), exported["float32"], X, tolerance=tolerance)
