"""What `pruning_accuracy` prunes: two pretrained networks, and how they train on."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np

import tfkit
from experiments import photographs as pictures
from tfkit.report import measure

RATE = 3e-3  # where Adam begins; it falls to zero along a cosine
JUDGED_DIGITS = 500
NOISE = 0.2  # standard deviation; white is 1
PATCH, STRIDE, TILE = 16, 24, 96  # sides and steps, in pixels
Weights = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
    """One network on one data set.

    Attributes:
        build: Returns the network, not trained, from keras or from tf_keras.
        loss: The loss's name.
        batch_size: Samples to an update.
        inputs: What trains, in order, each epoch after the other.
        targets: The same of what is to come out.
        judge: Judges a Keras model by the test data; more is better.
        weights: What the network begins with.
    """

    build: Callable[[ModuleType], Any]
    loss: str
    batch_size: int
    inputs: np.ndarray
    targets: np.ndarray
    judge: Callable[[keras.Model], float]
    weights: Weights

    @property
    def updates(self) -> int:
        """How many updates the data is good for."""
        return len(self.inputs) // self.batch_size

    def score(self, weights: Weights) -> float:
        """Judges the network with these weights."""
        model = self.build(keras)
        model.set_weights(weights)
        return self.judge(model)

    def compile(self, model: Any, framework: ModuleType) -> None:
        """Compiles a network of keras or tf_keras to be trained on all batches."""
        curve = framework.optimizers.schedules.CosineDecay(RATE, self.updates)
        # XLA's convolutions take longer here than oneDNN's, and small steps wait for Python;
        # TFMOT's callback must see every one
        steps = 20 if framework is keras else 1
        model.compile(
            framework.optimizers.Adam(curve), self.loss, jit_compile=False, steps_per_execution=steps
        )


def train(
    tasks: Sequence[Task],
    prune: Callable[[Any], Any] = lambda network: network,
    *,
    framework: ModuleType = keras,
    callbacks: Sequence[Any] = (),
) -> Iterator[Weights]:
    """Trains a network on one task after the other and yields its weights at each end.

    Every task begins with its own weights, a new optimizer and masks not yet drawn. They
    differ in numbers only, so that one trace of the train step serves them all.

    Args:
        tasks: The same network on as much data each.
        prune: Takes the network and returns what is to be trained: the same, or another
            model around the same layers.
        framework: keras or tf_keras.
        callbacks: Callbacks of that framework.
    """
    network = tasks[0].build(framework)
    model = prune(network)
    tasks[0].compile(model, framework)
    model.optimizer.build(model.trainable_variables)
    masks = [variable.constraint for variable in model.trainable_variables if variable.constraint]
    state = [*model.variables, *model.optimizer.variables]
    state += [variable for mask in masks for variable in mask.variables]
    blank = [variable.numpy().copy() for variable in state]
    for task in tasks:
        for variable, value in zip(state, blank, strict=True):
            variable.assign(value)
        network.set_weights(task.weights)
        end = task.updates * task.batch_size
        fit = {"batch_size": task.batch_size, "shuffle": False, "verbose": 0}
        model.fit(task.inputs[:end], task.targets[:end], callbacks=list(callbacks), **fit)
        yield network.get_weights()


def repeat(count: int, epochs: int, random: np.random.Generator) -> np.ndarray:
    """Returns the order of the samples, shuffled anew for each epoch."""
    return np.concatenate([random.permutation(count) for _ in range(epochs)])


def pretrain(task: Callable[[Weights], Task], build: Callable[[ModuleType], Any], seed: int) -> Task:
    """Returns a task that begins where training on another order of its data ends."""
    keras.utils.set_random_seed(seed)
    return task(next(train([task(build(keras).get_weights())])))


# --- digits --------------------------------------------------------------------------------------


def digits(epochs: int, seed: int) -> Task:
    """Returns the classifier of digits, pretrained."""
    random = np.random.default_rng(seed)
    (images, labels), (judged, answers) = split_digits(random)

    def task(weights: Weights) -> Task:
        order = repeat(len(images), epochs, random)
        return Task(
            build=digit_net,
            loss="sparse_categorical_crossentropy",
            batch_size=32,
            inputs=images[order],
            targets=labels[order],
            judge=lambda model: 100 * float(np.mean(np.argmax(model(judged), axis=-1) == answers)),
            weights=weights,
        )

    return pretrain(task, digit_net, seed)


def split_digits(random: np.random.Generator) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Returns images and labels to train with, and others to judge by."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[..., None] / 16).astype("float32")
    order = random.permutation(len(images))
    judged, learned = order[:JUDGED_DIGITS], order[JUDGED_DIGITS:]
    return (images[learned], data.target[learned]), (images[judged], data.target[judged])


def digit_net(framework: ModuleType) -> Any:
    """Returns three convolutions and a head."""
    layers = framework.layers
    conv = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    return framework.Sequential(
        [
            framework.Input((8, 8, 1)),
            layers.Conv2D(16, name="conv1", **conv),
            layers.Conv2D(32, name="conv2", strides=2, **conv),
            layers.Conv2D(64, name="conv3", strides=2, **conv),
            layers.Flatten(name="flatten"),
            layers.Dense(10, name="head", activation="softmax"),
        ]
    )


# --- photographs ---------------------------------------------------------------------------------


def photographs(epochs: int, seed: int) -> Task:
    """Returns the denoiser of both photographs, pretrained."""
    random = np.random.default_rng(seed)
    cuts = pictures.cut(pictures.load(), patch=PATCH, tile=TILE, stride=STRIDE)
    noisy_test = pictures.add_noise(cuts.test, NOISE, seed)

    def task(weights: Weights) -> Task:
        clean = cuts.train[repeat(len(cuts.train), epochs, random)]
        return Task(
            build=denoiser,
            loss="mse",
            batch_size=8,
            inputs=pictures.add_noise(clean, NOISE, int(random.integers(2**31))),
            targets=clean,
            judge=lambda model: measure.psnr(cuts.test, np.clip(model(noisy_test), 0, 1)),
            weights=weights,
        )

    return pretrain(task, denoiser, seed)


def denoiser(framework: ModuleType) -> Any:
    """Returns an encoder–decoder of three layers each way; from tf_keras its twin, layer by layer."""
    filters = (8, 16, 32)
    if framework is keras:
        return tfkit.models.build_encoder_decoder(
            (None, None, 3), filters=filters, output_channels=3, residual=True
        )
    layers = framework.layers
    conv = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    inputs = framework.Input((None, None, 3))
    full = layers.Conv2D(filters[0], **conv)(inputs)
    half = layers.Conv2D(filters[1], strides=2, **conv)(full)
    x = layers.Conv2D(filters[2], strides=2, **conv)(half)
    for skip in (half, full):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skip])
        x = layers.Conv2D(skip.shape[-1], **conv)(x)
    x = layers.Conv2D(3, 3, padding="same")(x)
    return framework.Model(inputs, layers.Add()([inputs, x]))
