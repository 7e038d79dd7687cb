"""SavedModels: for programs that have TensorFlow and nothing else."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.export.test_artifact import module_of
from tests.export.test_signature import net, pair_net
from tests.export.test_tflite import infinite_net, nan_net, open_net, unbuilt

RNG = np.random.default_rng(0)
X = RNG.random((7, 6), dtype="float32")


def signature_of(artifact):
    loaded = tf.saved_model.load(str(artifact.path))
    serve = loaded.signatures["serving_default"]
    serve.keep = loaded  # its variables live as long as the loaded object does
    return serve


def run(artifact, *arrays):
    """The outputs of one call, in the order of the signature's names."""
    serve = signature_of(artifact)
    names = sorted(serve.structured_input_signature[1])
    answer = serve(**{name: tf.constant(array) for name, array in zip(names, arrays, strict=True)})
    return [answer[name].numpy() for name in sorted(answer)]


ONLY_TENSORFLOW = """
import sys
sys.modules.update(dict.fromkeys(["keras", "tf_keras", "tfkit"]))  # importing them fails
import json
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
(name,) = serve.structured_input_signature[1]
x = np.float32(json.loads(sys.argv[2]))
answers = [list(serve(**{name: tf.constant(x[:size])}).values())[0].numpy() for size in (1, 3, 7)]
print(json.dumps([each.tolist() for each in answers]))
"""


def test_it_runs_in_plain_tensorflow_at_any_batch_size(tmp_path):
    model = net()
    artifact = tfkit.export_saved_model(model, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", ONLY_TENSORFLOW, str(artifact.path), json.dumps(X.tolist())],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for size, answer in zip((1, 3, 7), json.loads(done.stdout.splitlines()[-1]), strict=True):
        np.testing.assert_allclose(answer, model(X[:size]), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_sizes_that_the_model_leaves_open_stay_open(tmp_path, size):
    model, x = open_net(), RNG.random((2, *size, 3), dtype="float32")
    np.testing.assert_allclose(
        run(tfkit.export_saved_model(model, tmp_path / "model"), x)[0], model(x), atol=1e-5
    )


@pytest.mark.parametrize(
    "build", [models.dense_net, models.conv_net, models.nested_net, models.backbone, models.shared_net]
)
def test_sequential_nested_and_shared_models_are_exported(tmp_path, build):
    model = build()
    x = [RNG.random((3, *each.shape[1:]), dtype="float32") for each in model.inputs]
    (got,) = run(tfkit.export_saved_model(model, tmp_path / "model"), *x)
    np.testing.assert_allclose(got, model(x if len(x) > 1 else x[0]), atol=1e-5)


@pytest.mark.parametrize("pack", [list, dict])
def test_several_inputs_and_outputs_keep_their_order(tmp_path, pack):
    model = pair_net(pack)
    a, b = RNG.random((4, 3), dtype="float32"), RNG.random((4, 2), dtype="float32")
    expected = keras.tree.flatten(model({"a": a, "b": b} if pack is dict else [b, a]))
    got = run(tfkit.export_saved_model(model, tmp_path / "model"), *([a, b] if pack is dict else [b, a]))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_more_than_ten_outputs_keep_their_order(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [layers.Rescaling(float(n))(inputs) for n in range(1, 13)])
    outputs = tfkit.export_saved_model(model, tmp_path / "model").predict(np.ones((1, 3)))
    np.testing.assert_allclose([each[0, 0] for each in outputs], range(1, 13))


def test_integer_inputs_stay_integers(tmp_path):
    inputs = keras.Input((5,), dtype="int32")
    model, x = (
        keras.Model(inputs, layers.Embedding(10, 4)(inputs)),
        RNG.integers(0, 10, (3, 5), dtype="int32"),
    )
    np.testing.assert_allclose(run(tfkit.export_saved_model(model, tmp_path / "model"), x)[0], model(x))


def test_dropout_does_not_act(tmp_path):
    inputs = keras.Input((6,))
    artifact = tfkit.export_saved_model(keras.Model(inputs, layers.Dropout(0.9)(inputs)), tmp_path / "model")
    np.testing.assert_array_equal(run(artifact, X)[0], X)


def test_a_model_that_is_being_pruned_is_exported(tmp_path):
    model = tfkit.prune_low_magnitude(tfkit.prune_now(net(), 0.75))
    np.testing.assert_allclose(
        run(tfkit.export_saved_model(model, tmp_path / "model"), X)[0], model(X), atol=1e-5
    )


def test_a_saved_model_stands_under_its_name_only_after_the_comparison(tmp_path, monkeypatch):
    module, seen = module_of("saved_model"), []

    def compare(*arguments, compare=module.compare, **options):
        seen.append((tmp_path / "model").exists())
        return compare(*arguments, **options)

    monkeypatch.setattr(module, "compare", compare)
    tfkit.export_saved_model(net(), tmp_path / "model")
    assert seen == [False]
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_the_parity_in_the_artifact_can_be_recomputed_by_hand(tmp_path, monkeypatch):
    model = net()
    artifact = tfkit.export_saved_model(model, tmp_path / "model", representative_data=X)
    error = np.concatenate([run(artifact, X[i : i + 1])[0] - model(X[i : i + 1]) for i in range(7)])
    assert artifact.parity.samples == 7
    assert artifact.parity.tolerance == 1e-5
    assert artifact.parity.max_abs_error == pytest.approx(np.abs(error).max(), abs=1e-7)
    assert artifact.parity.rms_error == pytest.approx(np.sqrt(np.mean(error**2)), abs=1e-7)


REFUSED = {
    "NaN": (nan_net, {}, tfkit.NonFiniteWeightsError,
        r"finite number.*Received: model='outer'.*wrapper/backbone/conv2/kernel.*Train again"),
    "infinity": (infinite_net, {}, tfkit.NonFiniteWeightsError,
        r"finite number.*Received: model='net'.*head/bias.*Train again"),
    "unbuilt": (unbuilt, {}, tfkit.UnbuiltModelError, r"must be built.*Received: model='raw'.*keras\.Input"),
    "no model": (lambda: "net", {}, tfkit.ArgumentTypeError,
        r"must be a Keras 3 model.*Received: model='net'.*Load a file"),
    "subclassed": (models.subclassed_net, {}, tfkit.UnbuiltModelError,
        r"must know its inputs.*Received: model='subclassed'.*Wrap it"),
    "wrong shape of data": (net, {"representative_data": np.ones((4, 5))}, tfkit.ArgumentError,
        r"`representative_data` must hold .*Received: .*\(5,\).*model takes \[\(6,\)\]"),
    "inputs of different length": (pair_net, {"representative_data": [np.ones((4, 2)), np.ones((3, 3))]},
        tfkit.ArgumentError, r"`representative_data` must .*Received: representative_data"),
}  # fmt: skip


@pytest.fixture
def no_conversion(monkeypatch):
    monkeypatch.setattr(
        tf.saved_model, "save", lambda *arguments, **options: pytest.fail("a conversion began")
    )


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("no_conversion")
def test_is_refused_before_any_conversion(tmp_path, case):
    build, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        tfkit.export_saved_model(build(), tmp_path / "new" / "model", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_conversion")
def test_an_unwritable_folder_is_refused_before_any_conversion(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        tfkit.OutputPathError, match=r"can be written to.*Received: path=.*Choose another place"
    ):
        tfkit.export_saved_model(net(), tmp_path / "file" / "model")


def test_every_weight_is_written_once(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((256,)), layers.Dense(512), layers.Dense(8)])
    artifact = tfkit.export_saved_model(model, tmp_path / "model", preprocessing="inside")
    weights = 4 * model.count_params()
    assert weights < artifact.size_bytes < 1.5 * weights


def test_a_model_of_words_is_served_and_proven(tmp_path):
    words = keras.Input((1,), dtype="string")
    lookup = layers.StringLookup(vocabulary=["a", "b"])
    model = keras.Model(words, layers.Embedding(3, 2)(lookup(words)))
    x = np.array([["b"], ["a"], ["?"]], dtype=object)
    artifact = tfkit.export_saved_model(model, tmp_path / "model", representative_data=x)
    assert artifact.parity.passed
    assert artifact.parity.samples == 3
    rows = model.layers[-1].embeddings.numpy()
    np.testing.assert_array_equal(run(artifact, x)[0][:, 0], rows[[2, 1, 0]])
