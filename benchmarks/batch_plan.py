"""Seconds and memory to plan the batches of millions of utterances, and the cost of one batch at any step.

    python benchmarks/batch_plan.py --items 10000000 [--packed]

The durations are drawn from a log-normal around 8 seconds. lhotse's sampler, for comparison, has no plan: it streams
the cuts in every epoch and, to resume, replays the epoch up to the step.
"""

import argparse
import resource
import time

import numpy as np

from data_pipelines.batching.plan import make_plan
from data_pipelines.batching.rows import make_row_plan
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE as SAMPLE_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--packed", action="store_true", help="packed rows instead of buckets")
    parser.add_argument("--num-buckets", type=int, default=8)
    parser.add_argument("--seconds-per-batch", type=float, default=1000.0)
    args = parser.parse_args()

    seconds = np.random.default_rng(0).lognormal(np.log(8), 0.6, args.items).clip(0.3, 40).astype(np.float32)
    num_samples = (seconds * SAMPLE_RATE).astype(np.int64)
    token_lengths = (seconds * 14).astype(np.int32)
    del seconds

    start = time.perf_counter()
    options = {"seconds_per_batch": args.seconds_per_batch, "seed": 0}
    if args.packed:
        plan = make_row_plan(num_samples, token_lengths, **options)
    else:
        plan = make_plan(num_samples, token_lengths, num_buckets=args.num_buckets, **options)
    planned = time.perf_counter() - start

    steps = np.random.default_rng(1).integers(0, 100 * plan.steps_per_epoch, 1000).tolist()
    start = time.perf_counter()
    for step in steps:
        plan.batch(step)
    per_batch = (time.perf_counter() - start) / len(steps)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the inputs included; Linux counts in KiB
    print(plan.describe())
    print(f"{'items':>12} {'plan':>8} {'peak memory':>12} {'a batch of any step':>20}")
    print(f"{args.items:12d} {planned:6.2f} s {peak / 1e9:9.2f} GB {per_batch * 1e6:17.0f} µs")


if __name__ == "__main__":
    main()
