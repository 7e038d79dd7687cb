"""The same model, weights, data and schedule in tfkit on Keras 3 and in TFMOT on tf_keras.

TFMOT draws its masks before a step's forward pass, tfkit after the step's update, so the two
are never an update apart in their counts but see weights that are. Rates are those of fine-tuning.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tf_keras
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfkit

STEPS = 40
BATCH = 16
KERNELS = {"dense": ("d1", "d2", "head"), "convolutions": ("c1", "c2", "head")}
SHAPES = {"dense": (20,), "convolutions": (8, 8, 3)}
SCHEDULES = {
    "constant": lambda frequency: tfkit.ConstantSparsity(0.8, 5, frequency=frequency),
    "polynomial": lambda frequency: tfkit.PolynomialDecay(0.1, 0.9, 5, 35, frequency=frequency),
}
OPTIMIZERS = {
    "sgd": lambda library: library.optimizers.SGD(2e-3),
    "adam": lambda library: library.optimizers.Adam(3e-5),
}


def net(library, kind):
    layers = library.layers
    library.utils.set_random_seed(0)
    start = [library.Input(SHAPES[kind])] if library is keras else [layers.InputLayer(SHAPES[kind])]
    if kind == "dense":
        body = [layers.Dense(128, "relu", name="d1"), layers.Dense(96, "relu", name="d2")]
    else:
        body = [
            layers.Conv2D(32, 3, use_bias=False, name="c1"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Conv2D(48, 3, name="c2"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
        ]
    return library.Sequential([*start, *body, layers.Dense(5, name="head")])


def data(kind):
    random = np.random.default_rng(0)
    y = random.integers(5, size=4 * BATCH)
    shift = 0.3 * y.reshape(-1, *(1 for _ in SHAPES[kind]))
    return (random.normal(size=(len(y), *SHAPES[kind])) + shift).astype("float32"), y


@dataclasses.dataclass
class Step:
    """After one step: each library's masks, and the loss of its sparse weights on all data."""

    ours: list[np.ndarray]
    theirs: list[np.ndarray]
    our_loss: float
    their_loss: float


def train_both(kind, optimizer, schedule, frequency):
    model, legacy, judge = net(keras, kind), net(tf_keras, kind), net(keras, kind)
    legacy.set_weights(model.get_weights())
    tfkit.prune_low_magnitude(model, SCHEDULES[schedule](frequency))
    pruned = tfmot.prune_low_magnitude(legacy, SCHEDULES[schedule](frequency))
    for library, each in ((keras, model), (keras, judge), (tf_keras, pruned)):
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        each.compile(OPTIMIZERS[optimizer](library), loss, jit_compile=False)
    callback = tfmot.UpdatePruningStep()
    callback.set_model(pruned)
    callback.on_train_begin()
    wrappers = [layer for layer in pruned.layers if getattr(layer, "pruning_vars", None)]
    x, y = data(kind)

    def loss(weights):
        judge.set_weights(weights)
        return float(judge.test_on_batch(x, y))

    def their_weights():
        masks = {id(weight): mask for layer in wrappers for weight, mask, _ in layer.pruning_vars}
        for layer in pruned.layers:
            for weight in getattr(layer, "layer", layer).weights:
                if weight.name.split("/")[-1].split(":")[0] not in ("mask", "threshold", "pruning_step"):
                    yield weight.numpy() * (masks[id(weight)].numpy() if id(weight) in masks else 1)

    for number in range(STEPS):
        batch = slice(number * BATCH % len(x), number * BATCH % len(x) + BATCH)
        model.train_on_batch(x[batch], y[batch])
        pruned.train_on_batch(x[batch], y[batch])
        yield Step(
            [np.asarray(model.get_layer(name).kernel) != 0 for name in KERNELS[kind]],
            [layer.pruning_vars[0][1].numpy() != 0 for layer in wrappers],
            loss(model.get_weights()),
            loss(list(their_weights())),
        )


@pytest.mark.parametrize("frequency", [1, 10])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KERNELS)
def test_sparsity_masks_and_losses_are_tfmots(kind, optimizer, schedule, frequency):
    steps = list(train_both(kind, optimizer, schedule, frequency))
    for step in steps:
        for ours, theirs in zip(step.ours, step.theirs, strict=True):
            assert abs(int(ours.sum()) - int(theirs.sum())) <= 1
        agreeing = sum((ours == theirs).sum() for ours, theirs in zip(step.ours, step.theirs, strict=True))
        assert agreeing >= 0.999 * sum(mask.size for mask in step.ours)
    ours, theirs = np.array([(step.our_loss, step.their_loss) for step in steps]).T
    assert np.abs(ours - theirs).max() < 0.05 * np.ptp(theirs)
    assert steps[-1].ours[0].mean() < 0.5


def test_a_schedule_of_ones_own_is_asked_with_tfmots_numbers():
    class Saw(tfkit.PruningSchedule):
        """Up and down: 0.2, 0.4, 0.6, 0.2, …, at every second step."""

        def __call__(self, step):
            return keras.ops.equal(step % 2, 0), 0.2 + 0.2 * keras.ops.cast(step // 2 % 3, "float32")

        def get_config(self):
            return {"class_name": "Saw", "config": {}}

    SCHEDULES["saw"] = lambda frequency: Saw()
    try:
        steps = list(train_both("dense", "sgd", "saw", 1))
    finally:
        del SCHEDULES["saw"]
    counts = [[int(mask.sum()) for mask in step.ours] for step in steps]
    assert counts == [[int(mask.sum()) for mask in step.theirs] for step in steps]
    assert len({each[0] for each in counts}) == 4  # whole, and three sparsities
