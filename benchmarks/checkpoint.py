"""Time that a checkpoint blocks training, and time of a resume: for a state of about 1 GB, by default.

    python benchmarks/checkpoint.py

A step is blocked only while `Checkpoints.save` runs; writing continues during the following steps.
"""

import argparse
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jax_speechlm.training.checkpoints import Checkpoints
from jax_speechlm.training.state import TrainState

ARRAY_BYTES = 16 << 20  # as large as a 2048 x 2048 float32 matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the state (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="saves and restores (default: %(default)s)")
    parser.add_argument("--dir", help="a folder on the disk to measure (default: the system's temporary folder)")
    args = parser.parse_args()

    count = max(3, round(args.gigabytes * 2**30 / ARRAY_BYTES))
    keys = jax.random.split(jax.random.key(0), count)  # noise, as weights are: constants would be compressed away
    arrays = {f"array{number}": jax.random.normal(key, ARRAY_BYTES // 4) for number, key in enumerate(keys)}
    zero = jnp.zeros([], jnp.int32)
    state = jax.block_until_ready(TrainState(zero, arrays, (), {}, zero, zero))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**30

    seconds = {"loop blocked by save": [], "until on the disk": [], "restore": []}
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        checkpoints = Checkpoints(folder, keep_last=1, keep_best=0)
        for step in range(args.runs + 1):  # the first is a warm-up
            began = time.perf_counter()
            checkpoints.save(step, state, {"step": step})
            blocked = time.perf_counter() - began
            checkpoints.wait()
            written = time.perf_counter() - began
            began = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(shapes, lambda meta: None).state)
            restored = time.perf_counter() - began
            if step:
                for times, value in zip(seconds.values(), (blocked, written, restored), strict=True):
                    times.append(value)
        checkpoints.close()

    table = Table(title=f"checkpoint of {size:.2f} GiB, {args.runs} runs")
    for column in ("", "median s", "low", "high"):
        table.add_column(column, justify="right" if column else "left")
    for name, times in seconds.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(times), min(times), max(times))))
    Console().print(table)


if __name__ == "__main__":
    main()
