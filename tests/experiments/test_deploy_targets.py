"""The experiment's own parts: zeros where they are said to be, and a picture of any targets."""

import keras
import numpy as np
import pandas as pd

from experiments import deploy_targets


def test_only_1x1_convolutions_lose_weights():
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None)
    before = network.get_weights()

    twin = deploy_targets.zeroed(network, 0.9, seed=0)

    for layer in twin.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            pointwise = type(layer) is keras.layers.Conv2D and kernel.shape[:2] == (1, 1)
            assert abs(np.mean(kernel == 0) - (0.9 if pointwise else 0)) < (0.1 if pointwise else 1e-9)
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))


def test_targets_that_were_not_measured_are_not_drawn():
    table = pd.DataFrame({"form": ["a", "b"], "MB": [1.0, 2.0], "x86": [1.0, 2.0], "wasm": [1.0, 3.0]})
    assert deploy_targets.draw(table)[1:4] == b"PNG"
