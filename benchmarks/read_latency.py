"""Records a second from slow storage: reads in parallel and ahead, against one read a batch at a time.

    python benchmarks/read_latency.py --set data/queen-en

A sleep before every read stands for a network file system or a bucket. Each row of the table reads shuffled batches for
some seconds with as many reads in flight as batches are assembled, which is what reading the records of a batch one
after the other amounts to, and with the loader's default. All run alternately; the table holds medians. What is not
waiting is decoding, so the records' mean length is printed beside the table.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

from interleave import load

from data_pipelines.batching.plan import BatchPlan, make_plan
from data_pipelines.batching.speech import open_batches
from data_pipelines.storage.index import Index, read_index
from data_pipelines.storage.records import RecordReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, default=Path("data/queen-en"), help="folder of a prepared data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--seconds-per-batch", type=float, default=100.0)
    parser.add_argument("--latencies", type=float, nargs="+", default=[0, 20, 50], help="milliseconds a read")
    parser.add_argument("--parallel", type=int, default=2, help="batches assembled at a time")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of a run")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    index = read_index(args.set, args.split)
    plan = make_plan(index.num_samples, seconds_per_batch=args.seconds_per_batch, seed=0)
    settings = {"one after the other": {"num_reads": args.parallel}, "in parallel": {}}
    speeds: dict[tuple[float, str], list[float]] = {}
    for _, latency, (name, options) in itertools.product(range(args.runs), args.latencies, settings.items()):
        speed = records_per_second(index, plan, latency / 1e3, args.seconds, parallel=args.parallel, **options)
        speeds.setdefault((latency, name), []).append(speed)

    print(f"{'latency':>8}  {'reads':20} {'records/s':>10} {'(low to high)':>16}")
    for (latency, name), values in speeds.items():
        span = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"{latency:5.0f} ms  {name:20} {statistics.median(values):10,.0f} {span:>16}")
    print(f"records of {index.num_samples.mean() / index.sample_rate:.1f} s on average; {load()}")


def records_per_second(index: Index, plan: BatchPlan, latency: float, seconds: float, **options: int) -> float:
    """Reads batches for some seconds, after those that were read ahead before the clock starts.

    Args:
      latency: seconds added to every read.
      **options: further settings of `open_batches`.
    """
    read = RecordReader.read

    def slow_read(self: RecordReader, row: int) -> tuple[bytes, str]:
        time.sleep(latency)
        return read(self, row)

    RecordReader.read = slow_read
    batches = open_batches(index, plan, **options)
    try:
        for _ in range(8):
            next(batches)
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            count += int(next(batches)["weight"].sum())
        return count / elapsed
    finally:
        batches.close()
        RecordReader.read = read


if __name__ == "__main__":
    main()
