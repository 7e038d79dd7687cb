"""The static verdict on sparse kernels against what LiteRT does on a processor without AVX."""

import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from experiments import instructions
from tests.export import sparse_graphs
from tests.export.test_apart import emulated
from tfkit.export import apart
from tfkit.export.operations import read_program
from tfkit.export.padding import explicit_padding
from tfkit.export.signature import input_specs, serving_function
from tfkit.export.xnnpack import analyse
from tfkit.litert import convert, trace

pytestmark = pytest.mark.timeout(1200)  # the first test pays for all

CHILD = """
import json, pathlib, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter

for path in sorted(pathlib.Path(sys.argv[1]).glob("*/*.tflite")):
    print(path, flush=True)
    try:
        run = Interpreter(str(path), num_threads=1).get_signature_runner()
        (name,) = run.get_input_details()
        outputs = [run(**{name: x[None]}) for x in np.load(path.with_name("pictures.npy"))]
        names = sorted(outputs[0])
        stacked = (np.concatenate([each[name] for each in outputs]) for name in names)
        np.savez(path.with_suffix(".npz"), *stacked)
    except RuntimeError as error:
        path.with_suffix(".json").write_text(json.dumps(str(error)))
"""


def write(model, folder, float16):
    """Writes a model densely and sparse-encoded, and returns the dense file's bytes."""
    serve = trace(serving_function(model), input_specs(model, batch_size=1))
    contents = {}
    for name, sparse in (("dense", False), ("sparse", True)):

        def configure(converter, sparse=sparse):
            converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if sparse else []
            if float16:
                converter.optimizations += [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_types = [tf.float16]

        contents[name] = explicit_padding(convert({"serve": serve}, configure))
        (folder / f"{name}.tflite").write_bytes(contents[name])
    return contents["dense"]


def run_all(root):
    """Runs all files in one process without AVX, for the emulator takes seconds to begin."""
    (root / "child.py").write_text(CHILD)
    *python, _, _ = apart.command("no-avx", root)
    done = subprocess.run(
        [*python, str(root / "child.py"), str(root)],
        env=apart.child_environment("no-avx"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def answers(folder):
    """Returns what the dense and the sparse file put out, or what the runtime says of them."""
    return [
        list(np.load(folder / f"{name}.npz").values())
        if (folder / f"{name}.npz").exists()
        else json.loads((folder / f"{name}.json").read_text())
        for name in ("dense", "sparse")
    ]


def error(got, wanted):
    """The largest difference of all outputs, each against its own largest number."""
    return max(np.abs(x - y).max() / np.abs(y).max() for x, y in zip(got, wanted, strict=True))


def ask_keras(model):
    """Returns two pictures, a red one and a blue one, and what Keras makes of them."""
    size = model.input_shape[1]
    scale = 255 if "mobile" in model.name.lower() else 1
    pictures = scale * np.random.default_rng(2).random((2, size, size, 3), dtype="float32")
    pictures *= np.array([[[[1, 0.5, 0.2]]], [[[0.1, 0.3, 1]]]], "float32")
    outputs = model(pictures, training=False)
    wanted = [np.asarray(each) for each in (outputs if isinstance(outputs, list) else [outputs])]
    return pictures, wanted


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """For each case its folder, whose files have run, what Keras puts out, and the static analysis."""
    root, found = tmp_path_factory.mktemp("corpus"), {}
    for name, case in sparse_graphs.CASES.items():
        folder = root / name
        folder.mkdir()
        model = case.build()
        analysis = analyse(read_program(write(model, folder, case.float16)))
        pictures, wanted = ask_keras(model)
        np.save(folder / "pictures.npy", pictures)
        found[name] = folder, wanted, analysis
    run_all(root)
    return found


def measure(folder, wanted, float16):
    """Returns what becomes of a model's sparse file, by its outputs alone.

    The sparse kernels add up in another order than the dense ones. So where they run some
    last bits differ; where they do not, a file computes bit by bit what its dense form does.
    """
    assert all(np.abs(each[0] - each[1]).max() > 0.003 * np.abs(each).max() for each in wanted)
    dense, sparse = answers(folder)
    right = 5e-3 if float16 else 1e-3  # untrained networks magnify rounding; what is wrong is off by 0.5
    assert error(dense, wanted) < right
    if isinstance(sparse, str) or error(sparse, wanted) > 10 * right:
        return "wrong"
    assert error(sparse, wanted) < right
    return "dense" if all(map(np.array_equal, dense, sparse)) else "sparse"


@emulated
@pytest.mark.parametrize("name", sparse_graphs.CASES)
def test_the_verdict_is_what_the_runtime_does(name, corpus):
    case, (folder, wanted, analysis) = sparse_graphs.CASES[name], corpus[name]
    reasons = [reason for reason in analysis.reasons if reason]
    assert (analysis.verdict, measure(folder, wanted, case.float16)) == (case.verdict, case.verdict), reasons


@emulated
@pytest.mark.parametrize("name", ["plain", "half_precision", "same_stem", "too_few_zeros"])
def test_sparse_kernels_run_where_last_bits_differ(name, corpus):
    """Counted instructions say the same as the bits do."""
    case, (folder, *_) = sparse_graphs.CASES[name], corpus[name]
    dense, sparse = (
        instructions.count_instructions(folder / f"{each}.tflite", calls=(1, 4))
        for each in ("dense", "sparse")
    )
    assert (dense / sparse > 1.5) == (case.verdict == "sparse")
    assert dense / sparse > 0.9
