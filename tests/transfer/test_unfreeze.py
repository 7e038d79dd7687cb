"""`GradualUnfreezing`: one fit that goes as a sequence of fits, each with its own frozen layers."""

import itertools
import shutil

import keras
import numpy as np
import pytest
from keras import optimizers

import tfkit
from tests import models
from tests.arrays import expect_equal

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(8, 6)).astype("float32"), RANDOM.normal(size=(8, 2)).astype("float32")
STAGES = {0: "head", 2: ["d2", "head"], 3: "*"}
EPOCHS = 5
TRAINED = [{"head"}, {"head"}, {"d2", "head"}, {"d1", "d2", "head"}, {"d1", "d2", "head"}]

OPTIMIZERS = {
    "momentum": lambda: optimizers.SGD(0.01, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.01),
    "nadam": lambda: optimizers.Nadam(0.01),
    "average": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "loss scale": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01), initial_scale=8.0),
    "several": lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.Adam(0.01), {".*head.*": optimizers.SGD(0.01, momentum=0.9)})
    ),
}


def net(name="adam", **options):
    model = models.dense_net()
    model.compile(OPTIMIZERS[name](), "mse", **options)
    return model


def fit(model, *callbacks, epochs=EPOCHS, x=X, y=Y, **options):
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **settings)


def inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def numbers(model):
    """Copies of all weights and of the optimizer's state."""
    parts = [model, model.optimizer, *getattr(model.optimizer, "optimizers", [])]
    return [np.array(variable.numpy()) for part in parts for variable in part.variables]


def slots(model):
    """Name -> value of the optimizer's state."""
    return {variable.path: np.array(variable.numpy()) for variable in model.optimizer.variables}


class Watch(keras.callbacks.Callback):
    """Weights, the optimizer's state and its count, before each epoch begins and after it ends."""

    def __init__(self):
        super().__init__()
        self.weights, self.begun, self.ended, self.counts = [], [], [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.weights.append({v.path: np.array(v.numpy()) for v in self.model.weights})
        self.begun.append(slots(self.model))
        self.counts.append(int(self.model.optimizer.iterations))

    def on_epoch_end(self, epoch, logs=None):
        self.ended.append(slots(self.model))

    def on_train_end(self, logs=None):
        self.weights.append({v.path: np.array(v.numpy()) for v in self.model.weights})

    @property
    def moved(self):
        """The layers that moved in each epoch."""
        return [
            {path.split("/")[-2] for path in before if not np.array_equal(before[path], after[path])}
            for before, after in itertools.pairwise(self.weights)
        ]


@pytest.fixture(scope="module")
def watched():
    model, watch = net(), Watch()
    model.optimizer.build(model.trainable_variables)
    fit(model, tfkit.GradualUnfreezing(STAGES), watch)
    return model, watch


# --- what trains when --------------------------------------------------------------------------------


def test_each_stages_layers_move_in_its_epochs_and_no_others(watched):
    assert watched[1].moved == TRAINED


def test_the_count_of_iterations_goes_on(watched):
    assert watched[1].counts == [0, 2, 4, 6, 8]
    assert int(watched[0].optimizer.iterations) == 10


@pytest.mark.parametrize("epoch", [2, 3])
def test_the_state_of_weights_that_keep_training_is_bit_identical_at_the_boundary(watched, epoch):
    before, after = watched[1].ended[epoch - 1], watched[1].begun[epoch]
    survivors = {path for path in before if any(layer in path for layer in TRAINED[epoch - 1])}
    assert any(before[path].any() for path in survivors)
    for path in survivors:
        np.testing.assert_array_equal(after[path], before[path])


def test_weights_that_join_start_with_no_momentum(watched):
    joined = [value for path, value in watched[1].begun[3].items() if "d1" in path]
    assert len(joined) == 4
    assert not any(value.any() for value in joined)


def test_the_optimizer_stays_the_same_object():
    model = net(run_eagerly=True)
    optimizer = model.optimizer
    fit(model, tfkit.GradualUnfreezing(STAGES))
    assert model.optimizer is optimizer


def test_before_the_first_stage_the_model_trains_as_it_was_configured():
    model, watch = tfkit.configure_base_model(net(run_eagerly=True), "d1"), Watch()
    fit(model, tfkit.GradualUnfreezing({2: "head"}), watch, epochs=3)
    assert watch.moved == [{"d1"}, {"d1"}, {"head"}]


def test_stages_may_be_given_in_any_order():
    model, watch = net(run_eagerly=True), Watch()
    fit(model, tfkit.GradualUnfreezing(dict(reversed(STAGES.items()))), watch)
    assert watch.moved == TRAINED


def test_a_stage_may_freeze_as_well():
    model, watch = net(run_eagerly=True), Watch()
    fit(model, tfkit.GradualUnfreezing({0: "*", 1: "d2"}), watch, epochs=2)
    assert watch.moved == [{"d1", "d2", "head"}, {"d2"}]


def test_a_fit_that_begins_in_a_later_epoch_begins_in_its_stage():
    model, watch = net(run_eagerly=True), Watch()
    fit(model, tfkit.GradualUnfreezing(STAGES), watch, initial_epoch=2, epochs=4)
    assert watch.moved == TRAINED[2:4]


def test_a_second_fit_begins_with_the_first_stage_again():
    model, callback, watch = net(run_eagerly=True), tfkit.GradualUnfreezing(STAGES), Watch()
    fit(model, callback)
    fit(model, callback, watch)
    assert watch.moved == TRAINED


def test_a_callback_serves_a_second_model():
    callback, watch = tfkit.GradualUnfreezing(STAGES), Watch()
    fit(net(run_eagerly=True), callback)
    fit(net(run_eagerly=True), callback, watch)
    assert watch.moved == TRAINED


def test_nothing_is_traced_anew_within_a_stage():
    model = net()
    functions = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: functions.append(model.train_function)
    )
    fit(model, tfkit.GradualUnfreezing({0: "head", 2: "*"}), look, epochs=4)
    assert len({id(each) for each in functions[:4]}) == len({id(each) for each in functions[4:]}) == 1


@pytest.mark.parametrize(
    "patterns",
    [("d2", "head"), (name for name in ("d2", "head")), {"d2": 1, "head": 2}.keys()],
    ids=["tuple", "generator", "keys"],
)
def test_patterns_may_come_in_any_iterable(patterns):
    model, watch = net(run_eagerly=True), Watch()
    fit(model, tfkit.GradualUnfreezing({0: patterns}), watch, epochs=1)
    assert watch.moved == [{"d2", "head"}]


def test_says_what_it_does_when_asked(capsys):
    fit(net(run_eagerly=True), tfkit.GradualUnfreezing({1: ["d2", "head"]}, verbose=1), epochs=2)
    assert capsys.readouterr().out == "\nEpoch 2: ['d2', 'head'] trains, 46 weights.\n"  # 8·4 + 4 + 4·2 + 2


def test_says_nothing_otherwise(capsys):
    fit(net(run_eagerly=True), tfkit.GradualUnfreezing(STAGES))
    assert capsys.readouterr().out == ""


# --- against a sequence of fits ------------------------------------------------------------------------


def stage_by_stage(model, stages, epochs, batch_norm="frozen", x=X, y=Y):
    """Configures and trains epoch by epoch; no fit, for that would put averages in place at its end."""
    for epoch in range(epochs):
        if epoch in stages:
            tfkit.configure_base_model(model, stages[epoch], batch_norm=batch_norm)
        for start in range(0, len(x), 4):
            model.train_on_batch(x[start : start + 4], y[start : start + 4])
    model.optimizer.finalize_variable_values(model.trainable_variables)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ends_as_a_sequence_of_configurations_does(name):
    model, oracle = net(name, run_eagerly=True), net(name, run_eagerly=True)
    fit(model, tfkit.GradualUnfreezing(STAGES), epochs=4)
    stage_by_stage(oracle, STAGES, epochs=4)
    expect_equal(numbers(model), numbers(oracle))


def test_ends_as_a_sequence_of_fits_does():
    model, oracle = net("momentum"), net("momentum")
    fit(model, tfkit.GradualUnfreezing(STAGES), epochs=4)
    for (first, patterns), last in zip(STAGES.items(), [2, 3, 4], strict=True):
        tfkit.configure_base_model(oracle, patterns)
        fit(oracle, initial_epoch=first, epochs=last)
    expect_equal(numbers(model), numbers(oracle))


def test_ends_as_a_sequence_does_in_half_precision():
    def half():
        keras.config.set_dtype_policy("mixed_float16")
        try:
            return net("adam", run_eagerly=True)
        finally:
            keras.config.set_dtype_policy("float32")

    model, oracle = half(), half()
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    fit(model, tfkit.GradualUnfreezing(STAGES), epochs=4)
    stage_by_stage(oracle, STAGES, epochs=4)
    expect_equal(numbers(model), numbers(oracle))


IMAGES = (3 + 2 * RANDOM.normal(size=(8, 8, 8, 3))).astype("float32")


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_batch_normalization_follows_the_policy_in_each_stage(batch_norm):
    stages = {0: ["conv2", "head"], 1: "*", 2: "head"}
    model, oracle = models.conv_net(), models.conv_net()
    for each in (model, oracle):
        each.compile(optimizers.SGD(0.01), "mse", run_eagerly=True)
    watch = Watch()
    fit(model, tfkit.GradualUnfreezing(stages, batch_norm=batch_norm), watch, x=IMAGES, epochs=3)
    stage_by_stage(oracle, stages, 3, batch_norm, x=IMAGES)
    expect_equal(numbers(model), numbers(oracle))
    bn = {"bn1"} if batch_norm == "train" else set()
    assert watch.moved == [{"conv2", "head"}, {"conv1", "conv2", "head"} | bn, {"head"}]


@pytest.mark.parametrize(
    ("build", "stages", "shape"),
    [
        (models.nested_net, {0: "head", 1: ["wrapper/backbone/conv2", "head"]}, (8, 8, 3)),
        (models.shared_net, {0: "first_own", 1: ["second/shared"]}, (4,)),
        (models.subclassed_net, {0: "head", 1: ["block2/conv", "head"]}, (8, 8, 3)),
        (models.gated_net, {0: "head", 1: "gate1/mix"}, (6,)),
    ],
    ids=["nested", "shared", "subclassed", "gated"],
)
def test_exactly_the_selected_weights_move_in_models_of_every_kind(build, stages, shape):
    model = build()
    model.compile(optimizers.SGD(0.1), "mse", run_eagerly=True)
    x = RANDOM.normal(size=(4, *shape)).astype("float32")
    y = RANDOM.normal(size=(4, *model(x).shape[1:])).astype("float32")
    for epoch, patterns in stages.items():
        before = [np.array(weight.numpy()) for weight in model.weights]
        fit(model, tfkit.GradualUnfreezing(stages), x=x, y=y, initial_epoch=epoch, epochs=epoch + 1)
        pairs = zip(model.weights, before, strict=True)
        moved = {id(weight) for weight, old in pairs if not np.array_equal(old, weight.numpy())}
        assert moved == {id(weight) for weight in tfkit.select_layers(model, patterns).variables}


# --- with other callbacks ----------------------------------------------------------------------------


def test_a_curve_goes_on_through_the_stages():
    model = net("momentum", run_eagerly=True)
    rates = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(model.optimizer.learning_rate))
    )
    curve = tfkit.LearningRateCurve(tfkit.curves.linear(0.1, 0.0, 100))
    fit(model, curve, tfkit.GradualUnfreezing(STAGES), look)
    np.testing.assert_allclose(rates, 0.1 * (1 - np.arange(10) / 100), rtol=1e-5)


def test_rules_by_layer_hold_through_the_stages():
    # With no momentum each update is rate · factor · gradient: two models, one scaled by hand.
    scaled, plain = net("momentum", run_eagerly=True), net("momentum", run_eagerly=True)
    for model in (scaled, plain):
        model.optimizer.momentum = 0.0
    tfkit.set_learning_rate_multipliers(scaled, {"d1": 0.5})
    for model in (scaled, plain):
        fit(model, tfkit.GradualUnfreezing({0: "head", 1: "d1"}), epochs=2, batch_size=8)
    start = models.dense_net()
    falls = [
        np.array(model.get_layer("d1").kernel) - np.array(start.get_layer("d1").kernel)
        for model in (scaled, plain)
    ]
    assert np.abs(falls[1]).max() > 1e-4
    np.testing.assert_allclose(falls[0], 0.5 * falls[1], rtol=1e-3, atol=1e-8)


# --- resumption ------------------------------------------------------------------------------------------


class Keep(keras.callbacks.Callback):
    """Copies the backups before each epoch."""

    def __init__(self, root):
        super().__init__()
        self.root = root

    def on_epoch_begin(self, epoch, logs=None):
        for order in ("first", "last"):
            if (self.root / order).exists():
                shutil.copytree(self.root / order, self.root / f"{order} {epoch}")


def among(order, backup, own):
    return [backup, own] if order == "first" else [own, backup]


RESUMED = {
    "momentum": {0: "head", 2: ["d1", "head"], 3: "*"},
    "adam": {0: "head", 2: "*"},
    "average": {1: "head", 3: ["d1", "head"]},
    "accumulation": {0: "head", 2: "*", 3: "d1"},
    "loss scale": {1: "head", 2: "*"},
}


def small(name):
    """Two layers, so that the many fits below are quick."""
    model = models.dense_net(units=(3,))
    model.compile(OPTIMIZERS[name](), "mse", run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Finds the copies of a fit's backups and how the fit ended."""
    made = {}

    def find(name):
        if name not in made:
            root, model = tmp_path_factory.mktemp("backups"), small(name)
            first, last = (keras.callbacks.BackupAndRestore(root / each) for each in ("first", "last"))
            fit(model, first, tfkit.GradualUnfreezing(RESUMED[name]), last, Keep(root))
            made[name] = (root, numbers(model))
        return made[name]

    return find


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        *(("momentum", epoch) for epoch in range(1, EPOCHS)),
        ("adam", 2),
        ("average", 3),
        ("accumulation", 3),
        ("loss scale", 2),
    ],
)
def test_a_fit_that_died_ends_as_one_that_did_not(name, order, epoch, whole):
    root, expected = whole(name)
    model = small(name)
    backup = keras.callbacks.BackupAndRestore(root / f"{order} {epoch}")
    history = fit(model, *among(order, backup, tfkit.GradualUnfreezing(RESUMED[name])))
    assert history.epoch[0] == epoch
    expect_equal(numbers(model), expected)


def test_a_traced_fit_that_died_ends_as_one_that_did_not(tmp_path):
    model = net("adam")
    fit(
        model,
        tfkit.GradualUnfreezing(STAGES),
        keras.callbacks.BackupAndRestore(tmp_path / "last"),
        Keep(tmp_path),
    )
    again, backup = net("adam"), keras.callbacks.BackupAndRestore(tmp_path / "last 3")
    assert fit(again, tfkit.GradualUnfreezing(STAGES), backup).epoch == [3, 4]
    expect_equal(numbers(again), numbers(model))


class Die(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, 1):
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [2, 3], ids="died in {}".format)
@pytest.mark.parametrize("order", ["first", "last"])
def test_the_same_model_and_callbacks_may_go_on_after_an_interruption(order, epoch, tmp_path):
    stages = {2: "head", 3: "*"}
    whole, model = small("momentum"), small("momentum")
    fit(whole, tfkit.GradualUnfreezing(stages))
    callbacks = among(
        order, keras.callbacks.BackupAndRestore(tmp_path / "b"), tfkit.GradualUnfreezing(stages)
    )
    with pytest.raises(KeyboardInterrupt):
        fit(model, *callbacks, Die(epoch))
    fit(model, *callbacks)
    expect_equal(numbers(model), numbers(whole))


# --- refusals --------------------------------------------------------------------------------------------


def test_epochs_may_be_whole_numbers_of_numpys():
    assert tfkit.GradualUnfreezing({np.int64(3): "*", 0: "head"}).stages == {0: ["head"], 3: ["*"]}


@pytest.mark.parametrize("stages", [None, "head", ["head"], [(0, "head")], 3])
def test_stages_that_are_no_mapping(stages):
    rule = r"`stages` must map epochs to patterns, such as \{0: 'head'.* Received: stages="
    with pytest.raises(tfkit.ArgumentTypeError, match=rule):
        tfkit.GradualUnfreezing(stages)


@pytest.mark.parametrize(
    ("stages", "received"),
    [
        ({}, r"\[\]"),
        ({-1: "head"}, r"\[-1\]"),
        ({1.0: "head"}, r"\[1\.0\]"),
        ({"0": "head"}, r"\['0'\]"),
        ({True: "head"}, r"\[True\]"),
        ({0: "head", None: "*"}, r"\[0, None\]"),
    ],
)
def test_epochs_that_are_none(stages, received):
    rule = (
        r"`stages` must name at least one epoch, each a whole number of at least 0\. "
        rf"Received: epochs {received}\."
    )
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.GradualUnfreezing(stages)


def test_an_unknown_batch_norm():
    rule = r"`batch_norm` must be 'frozen' or 'train'\. Received: batch_norm='learn'"
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.GradualUnfreezing({0: "head"}, batch_norm="learn")


def test_batch_norm_can_only_be_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        tfkit.GradualUnfreezing({0: "head"}, "train")


def test_a_misspelt_name_in_a_later_stage_fails_before_the_first_step():
    model = net(run_eagerly=True)
    before = numbers(model)
    rule = r"must match at least one layer\. Received: pattern='haed'\. Nearest names: head"
    with pytest.raises(tfkit.LayerNotFoundError, match=rule):
        fit(model, tfkit.GradualUnfreezing({0: "d1", 90: ["d2", "haed"]}))
    expect_equal(numbers(model), before)
    assert len(model.trainable_variables) == 6


def test_the_stages_of_the_caller_are_not_changed():
    stages = {3: "*", 0: "head"}
    tfkit.GradualUnfreezing(stages)
    assert list(stages) == [3, 0]
