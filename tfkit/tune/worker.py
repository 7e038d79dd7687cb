"""The process of one worker, started by `launch` as ``python -m tfkit.tune.worker JOB NAME ADDRESS``."""

import os
import pathlib
import sys

import cloudpickle


def main(job: str, name: str, address: str) -> int:
    """Runs trials until the chief has none left; returns the exit code."""
    if cores := os.environ.get("TFKIT_CORES"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    from tfkit.errors import SearchError
    from tfkit.tune.bench import WrongCallError
    from tfkit.tune.launch import WRONG_CALL, work

    path = pathlib.Path(job)
    try:
        work(cloudpickle.loads(path.read_bytes()), path.parents[1], address, name)
    except WrongCallError as error:
        print(f"tfkit: {error}", file=sys.stderr)
        return WRONG_CALL
    except SearchError as error:
        print(f"tfkit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
