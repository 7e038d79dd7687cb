"""What holds for every test."""

import gc
import os

import pytest

# Workers share the cores: with a pool of threads for every core each, they wait for one another.
# TensorFlow reads this when it is first imported, here and in the processes that tests start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    share = str(max(1, len(os.sched_getaffinity(0)) // int(workers)))
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", share)
    os.environ.setdefault("OMP_NUM_THREADS", share)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """Keeps `gc.collect`, which searches call, from going through all that files before have left."""
    gc.collect()
    gc.freeze()
