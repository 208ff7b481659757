"""Useful audio a second of the plans of LibriSpeech, from a cost by the length of a row.

    python benchmarks/row_lengths.py

The cost of a second of audio, `--base` + `--slope` x seconds of its row, in microseconds, is the line through the
estimates that `jax-speechlm plan` gives for rows of 14.28 and 28.52 s (docs/scaling.md). Durations are those of
`benchmarks/packed_rows.py`, plans those of librispeech/best_rq_960_v5e16 with frames of 20 ms.

The last column is the ceiling: the useful audio a second without padding, at the cost of a second that the plan's own
rows have, relative to the plan. Nothing that only removes padding, such as packing at no cost, gains more.
"""

import argparse

from packed_rows import librispeech

from data_pipelines.batching.plan import SpeechPlan, make_plan
from data_pipelines.batching.rows import RowPlan, make_row_plan

SHARED = {"seconds_per_batch": 12_800, "batch_multiple": 16, "max_seconds": 24.0, "frame_samples": 320, "seed": 0}


def useful(plan: SpeechPlan, base: float, slope: float) -> float:
    """Returns the seconds of audio without padding that a plan's steps take in a second."""
    cost = computed = 0.0
    for bucket in plan.buckets:
        rows = bucket.num_rows if isinstance(plan, RowPlan) else bucket.num_batches * bucket.batch_size
        seconds = bucket.num_samples / plan.sample_rate
        computed += rows * seconds
        cost += rows * seconds * (base + slope * seconds)
    return 1e6 * computed * (1 - plan.padding_share) / cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=float, default=30.0)
    parser.add_argument("--slope", type=float, default=1.91)
    args = parser.parse_args()
    lengths, _ = librispeech()
    plans = {f"{n} buckets": make_plan(lengths, num_buckets=n, min_seconds=1.0, **SHARED) for n in (8, 12)}
    plans["8 buckets, crops"] = make_plan(lengths, num_buckets=8, min_seconds=2.0, max_crop=0.15, **SHARED)
    for seconds in ((28.5,), (14.25, 28.5), (17.0, 24.0)):
        name = " and ".join(f"{value:g}" for value in seconds)
        plans[f"rows of {name} s"] = make_row_plan(lengths, row_seconds=seconds, min_seconds=1.0, **SHARED)
    print(f"{'':24} {'padding':>8} {'useful s/s':>11} {'ceiling':>8}")
    for name, plan in plans.items():
        rate, ceiling = useful(plan, args.base, args.slope), 1 / (1 - plan.padding_share)
        print(f"{name:24} {plan.padding_share:8.1%} {rate:11,.0f} {ceiling:8.2f}")


if __name__ == "__main__":
    main()
