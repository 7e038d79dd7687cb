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

CHILD = """
import json, pathlib, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter

folder, failed = pathlib.Path(sys.argv[1]), {}
for path in folder.glob("*.tflite"):
    try:
        run = Interpreter(str(path), num_threads=1).get_signature_runner()
        (name,) = run.get_input_details()
        outputs = [run(**{name: x[None]}) for x in np.load(folder / "pictures.npy")]
        names = sorted(outputs[0])
        stacked = (np.concatenate([each[name] for each in outputs]) for name in names)
        np.savez(path.with_suffix(".npz"), *stacked)
    except RuntimeError as error:
        failed[path.stem] = str(error)
(folder / "failed.json").write_text(json.dumps(failed))
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


def run_both(folder, pictures):
    """Runs both files in one process without AVX; returns their outputs, or what the runtime says."""
    np.save(folder / "pictures.npy", pictures)
    (folder / "child.py").write_text(CHILD)
    *python, _, _ = apart.command("no-avx", folder)
    done = subprocess.run(
        [*python, str(folder / "child.py"), str(folder)],
        env=apart.child_environment("no-avx"),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    failed = json.loads((folder / "failed.json").read_text())
    return [
        failed[name] if name in failed else list(np.load(folder / f"{name}.npz").values())
        for name in ("dense", "sparse")
    ]


def error(got, wanted):
    """The largest difference of all outputs, each against its own largest number."""
    return max(np.abs(x - y).max() / np.abs(y).max() for x, y in zip(got, wanted, strict=True))


def measure(model, folder, float16):
    """Returns what becomes of a model's sparse file, by its outputs alone.

    The sparse kernels add up in another order than the dense ones. So where they run some
    last bits differ; where they do not, a file computes bit by bit what its dense form does.
    """
    size = model.input_shape[1]
    scale = 255 if "mobile" in model.name.lower() else 1
    pictures = scale * np.random.default_rng(2).random((2, size, size, 3), dtype="float32")
    pictures *= np.array([[[[1, 0.5, 0.2]]], [[[0.1, 0.3, 1]]]], "float32")  # a red one and a blue one
    outputs = model(pictures, training=False)
    wanted = [np.asarray(each) for each in (outputs if isinstance(outputs, list) else [outputs])]
    assert all(np.abs(each[0] - each[1]).max() > 0.003 * np.abs(each).max() for each in wanted)
    dense, sparse = run_both(folder, pictures)
    right = 5e-3 if float16 else 1e-3  # untrained networks magnify rounding; what is wrong is off by 0.5
    assert error(dense, wanted) < right
    if isinstance(sparse, str) or error(sparse, wanted) > 10 * right:
        return "wrong"
    assert error(sparse, wanted) < right
    return "dense" if all(map(np.array_equal, dense, sparse)) else "sparse"


@emulated
@pytest.mark.parametrize("name", sparse_graphs.CASES)
def test_the_verdict_is_what_the_runtime_does(name, tmp_path):
    case = sparse_graphs.CASES[name]
    model = case.build()
    analysis = analyse(read_program(write(model, tmp_path, case.float16)))
    reasons = [reason for reason in analysis.reasons if reason]
    assert (analysis.verdict, measure(model, tmp_path, case.float16)) == (case.verdict, case.verdict), reasons


@emulated
@pytest.mark.parametrize("name", ["plain", "half_precision", "same_stem", "too_few_zeros"])
def test_sparse_kernels_run_where_last_bits_differ(name, tmp_path):
    """Counted instructions say the same as the bits do."""
    case = sparse_graphs.CASES[name]
    write(case.build(), tmp_path, case.float16)
    dense, sparse = (
        instructions.count_instructions(tmp_path / f"{each}.tflite", calls=(1, 4))
        for each in ("dense", "sparse")
    )
    assert (dense / sparse > 1.5) == (case.verdict == "sparse")
    assert dense / sparse > 0.9
