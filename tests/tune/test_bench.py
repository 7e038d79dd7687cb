"""A model that is used again trains as one built anew; features computed once change nothing."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tfkit import SearchSpace

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(24, 6)).astype("float32"), RANDOM.normal(size=(24, 2)).astype("float32")
SPACE = SearchSpace(learning_rate=[0.003, 0.03, 0.3], weight_decay=[0.0, 0.5])


def noisy(units=8):
    """Dropout, normalisation, slots, and seeds that Keras draws by itself."""
    stack = [layers.Dense(units, "relu"), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(2)]
    model = keras.Sequential([keras.Input((6,)), *stack])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


def by_units(hp):
    return noisy(hp.get("units"))


def frozen():
    model = models.dense_net()
    tfkit.configure_base_model(model, ["d2", "head"])
    model.compile(keras.optimizers.AdamW(0.01), "mse")
    return model


def scaled():
    model = models.dense_net()
    inner = keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True, ema_momentum=0.5)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0), "mse")
    return model


def ruled():
    model = models.dense_net()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    tfkit.set_weight_decay(model, 0.1, exclude="head")
    return tfkit.set_learning_rate_multipliers(model, {"d1": 0.1})


@keras.saving.register_keras_serializable("tfkit.tests")
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(x)


def subclassed():
    model = Net()
    model.compile("adam", "mse")
    return model  # not built: Keras builds it in `fit`


BUILDS = {
    "noisy": (noisy, {}),
    "frozen": (frozen, {}),
    "loss scale": (scaled, {}),
    "rules": (ruled, {}),
    "unbuilt": (subclassed, {}),
    "units": (by_units, {"space": SearchSpace(learning_rate=[0.01, 0.1], units=[2, 3])}),
}


def run(folder, build, **options):
    shared = {
        "space": SPACE,
        "validation_data": (X[:8], Y[:8]),
        "tuner": "grid",
        "max_trials": 4,
        "epochs": 3,
        "seed": 7,
        "batch_size": 5,
        "verbose": 0,
    }
    return tfkit.search(build, X, Y, directory=folder, **{**shared, **options})


@pytest.mark.parametrize("name", BUILDS)
def test_histories_equal_those_of_models_that_are_built_anew(name, tmp_path):
    build, options = BUILDS[name]
    anew = run(tmp_path / "anew", build, reuse=False, cache_frozen=False, **options)
    again = run(tmp_path / "again", build, **options)
    assert len(set(anew.table.score)) == 4
    for column in anew.history.columns:
        np.testing.assert_allclose(again.history[column], anew.history[column], rtol=1e-5, err_msg=column)
    assert again.table.drop(columns="seconds").round(6).equals(anew.table.drop(columns="seconds").round(6))
    first, second = anew.best_model().get_weights(), again.best_model().get_weights()
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def counting(build):
    """The same `build`, which counts its calls."""
    calls = []

    def counted():
        calls.append(1)
        return build()

    return counted, calls


def test_a_build_that_takes_nothing_is_called_once(tmp_path):
    build, calls = counting(noisy)
    run(tmp_path, build)
    assert len(calls) == 1


def test_one_train_step_serves_all_trials(tmp_path):
    functions = []

    class Look(keras.callbacks.Callback):
        def __deepcopy__(self, memo):
            return self

        def on_train_end(self, logs=None):
            functions.append(self.model.train_function)

    run(tmp_path, noisy, callbacks=[Look()])
    assert len(functions) == 4
    assert len({id(each) for each in functions}) == 1


def test_what_build_reads_decides_whether_it_is_called_again(tmp_path):
    calls = []

    def build(hp):
        calls.append(hp.get("units"))
        return noisy(hp.get("units"))

    run(tmp_path / "one", build, space=SearchSpace(learning_rate=[0.01, 0.1, 0.2], units=[2]))
    assert calls == [2]
    calls.clear()
    run(tmp_path / "two", build, space=SearchSpace(learning_rate=[0.01, 0.1], units=[2, 3]))
    assert sorted(set(calls)) == [2, 3]


def test_a_build_that_reads_the_rate_is_called_for_every_one(tmp_path):
    calls = []

    def build(hp):
        calls.append(hp.get("learning_rate"))
        return noisy()

    run(tmp_path, build, space=SearchSpace(learning_rate=[0.01, 0.1, 0.2]), max_trials=3)
    assert set(calls) == {0.01, 0.1, 0.2}


def test_a_frozen_layer_sees_every_sample_once_in_a_search(tmp_path):
    from tests.transfer.caching import TRIAL
    from tests.transfer.caching import counting as counted

    made = []

    def build():
        made.append(counted(run_eagerly=True))
        return made[-1]

    run(tmp_path, build, space=SearchSpace(learning_rate=[0.01, 0.1]), max_trials=2)
    assert sum(made[0].get_layer("counter").seen) == 1 + TRIAL + 24 + 8  # one tells the metrics


def test_a_callback_that_moves_the_boundary_gets_new_models(tmp_path):
    build, calls = counting(lambda: frozen())
    stages = tfkit.GradualUnfreezing({0: "head", 1: "*"})
    run(tmp_path, build, callbacks=[stages], max_trials=2)
    assert len(calls) >= 2


class Still(keras.callbacks.Callback):
    """Puts the statistics of a normalisation back to where they begin."""

    def on_train_batch_end(self, batch, logs=None):
        mean, variance = self.model.layers[1].moving_mean, self.model.layers[1].moving_variance
        mean.assign(keras.ops.zeros_like(mean))
        variance.assign(keras.ops.ones_like(variance))


def test_a_model_that_build_keeps_is_put_back_for_every_trial(tmp_path):
    model = noisy()
    before = model.evaluate(X[:8], Y[:8], verbose=0)[0]
    space = SearchSpace(learning_rate=[0.03, 0.003, 0.0])
    found = run(tmp_path, lambda: model, space=space, max_trials=3, callbacks=[Still()]).history
    # at a rate of zero only the statistics move
    np.testing.assert_allclose(found[found.trial == 2].val_loss, before, rtol=1e-5)


def test_a_checkpoint_is_a_plain_keras_file(tmp_path):
    result = run(tmp_path, noisy)
    [path] = (tmp_path / "checkpoints").iterdir()
    model = keras.models.load_model(path)
    assert model.evaluate(X[:8], Y[:8], verbose=0)[0] == pytest.approx(result.best.score, rel=1e-5)
    assert model.optimizer.weight_decay == pytest.approx(result.best.weight_decay)


def test_several_checkpoints_stay_on_request(tmp_path):
    result = run(tmp_path, noisy, keep_checkpoints=2)
    best = sorted(result.table.sort_values("score").trial[:2])
    assert sorted(int(path.stem) for path in (tmp_path / "checkpoints").iterdir()) == best


def test_a_strategy_is_in_force_where_models_are_built(tmp_path):
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    seen = []

    def build():
        seen.append(tf.distribute.get_strategy())
        return noisy()

    result = run(tmp_path, build, distribution_strategy=strategy)
    assert seen[0] is strategy
    assert (result.table.status == "completed").all()


def test_an_objective_that_is_never_reported_is_refused_before_the_first_trial(tmp_path):
    steps = []

    def build():
        model = noisy()
        model.make_train_function = lambda force=False: steps.append(1)
        return model

    rule = r"history has loss, mae, val_loss, val_mae\."
    with pytest.raises(tfkit.ArgumentError, match=rule):
        run(tmp_path, build, objective="val_accuracy")
    assert not steps
    assert not list(tmp_path.iterdir())


def test_an_objective_of_one_of_several_outputs_is_found(tmp_path):
    def build():
        inputs = keras.Input((6,))
        outputs = {name: layers.Dense(2, name=name)(inputs) for name in ("a", "b")}
        model = keras.Model(inputs, outputs)
        model.compile("adam", {"a": "mse", "b": "mse"}, metrics={"a": ["mae"]})
        return model

    import keras_tuner

    for name in ("val_a_mae", "val_b_loss"):
        result = tfkit.search(
            build,
            X,
            {"a": Y, "b": Y},
            space=SearchSpace(learning_rate=[0.1]),
            validation_split=0.25,
            max_trials=1,
            epochs=1,
            objective=keras_tuner.Objective(name, "min"),
            directory=tmp_path / name,
            verbose=0,
        )
        assert result.table.status.tolist() == ["completed"]


def test_several_optimizers_are_refused(tmp_path):
    def build():
        model = models.dense_net()
        parts = keras.optimizers.OptimizerMap(
            keras.optimizers.Adam(0.1), {".*head.*": keras.optimizers.SGD(0.1)}
        )
        model.compile(keras.optimizers.MultiOptimizer(parts), "mse")
        return model

    with pytest.raises(tfkit.ArgumentError, match=r"One optimizer must train the model.*of 2 optimizers"):
        run(tmp_path, build)


READS = {
    "dict": lambda hp: dict(hp.values)["units"],
    "items": lambda hp: next(value for name, value in hp.values.items() if name == "units"),
    "keywords": lambda hp: (lambda units, **_: units)(**hp.values),
    "copy": lambda hp: hp.copy().get("units"),
    "copied values": lambda hp: hp.values.copy()["units"],
    "values": lambda hp: max(value for value in hp.values.values() if isinstance(value, int)),
    "index": lambda hp: hp["units"],
    "declared": lambda hp: hp.Choice("units", [2, 8, 32]),
}


@pytest.mark.parametrize("way", READS)
def test_however_build_reads_a_value_the_model_is_that_of_the_trial(way, tmp_path):
    widths = []

    class Look(keras.callbacks.Callback):
        def __deepcopy__(self, memo):
            return self

        def on_train_begin(self, logs=None):
            widths.append(self.model.layers[0].units)

    run(
        tmp_path,
        lambda hp: noisy(READS[way](hp)),
        space=SearchSpace(units=[2, 8, 32]),
        max_trials=3,
        epochs=1,
        callbacks=[Look()],
    )
    assert sorted(widths) == [2, 8, 32]


def test_a_metric_that_keras_names_is_called_the_same_in_every_trial(tmp_path):
    def build(hp):
        model = noisy(hp.get("units"))
        model.compile("adam", "mse", metrics=[keras.metrics.MeanAbsoluteError(), keras.metrics.AUC()])
        return model

    y = (Y > 0).astype("float32")
    options = {"space": SearchSpace(units=[2, 3, 4]), "max_trials": 3, "epochs": 1, "reuse": False}
    history = tfkit.search(
        build, X, y, validation_data=(X, y), tuner="grid", directory=tmp_path, verbose=0, **options
    ).history
    assert history.notna().all().all()
    assert sum("auc" in name for name in history.columns) == 2


def test_a_choice_between_true_and_false_is_one(tmp_path):
    seen = []

    def build(hp):
        seen.append(hp.get("flag"))
        return noisy()

    table = run(tmp_path, build, space=SearchSpace(flag=[True, False]), max_trials=2, epochs=1).table
    assert sorted(set(map(repr, seen))) == ["False", "True"]
    assert sorted(map(repr, table.flag.tolist())) == ["False", "True"]
