"""A Dask cluster on this machine, in processes of its own, so that its threads, logs and warnings are not the tests'.

``python -m tests.dask_cluster nanny`` has workers that are started again when they die, ``alone`` some that are not.
It prints the scheduler's address, and ends when its standard input does.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import uncovered

WORKERS = 2


@contextmanager
def dask_cluster(kind: str, *python_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a cluster of two workers with a thread each; the first line of the process's output is the address."""
    path = os.pathsep.join([*map(str, python_path), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.dask_cluster", kind],
        env={**uncovered(), "PYTHONPATH": path.rstrip(os.pathsep)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def main() -> None:
    """Run a cluster until standard input ends."""
    from distributed import LocalCluster

    alone = sys.argv[1] == "alone"
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with LocalCluster(n_workers=0 if alone else WORKERS, **options) as cluster:
        words = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--nthreads", "1", "--no-nanny"]
        workers = [subprocess.Popen([*words, "--no-dashboard"]) for _ in range(WORKERS if alone else 0)]
        try:
            with cluster.get_client() as client:
                client.wait_for_workers(WORKERS)
            sys.stdout.write(f"{cluster.scheduler_address}\n")
            sys.stdout.flush()
            sys.stdin.read()
        finally:
            for worker in workers:
                worker.kill()


if __name__ == "__main__":
    main()
