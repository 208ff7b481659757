"""From FLAC to padded batches: this project's loader against lhotse's DynamicBucketingSampler.

    python benchmarks/data_pipeline.py --set data/queen-en --peer-python /path/to/python

Both read one epoch of the same FLAC bytes, in shuffled batches of about the same padded audio, with the same number of
buckets, in a process of their own with one worker and one thread; the runs are interleaved and the table holds medians.
The peer reads one file a clip, its usual form, and pads each batch to its longest row, so that its batches come in many
shapes; ours come in one a bucket, or in one if rows are packed, and the number of shapes is the number of programs that
XLA compiles.
`--peer-python` is an interpreter that has lhotse and torch; without it the table has our rows alone.

CPU seconds are user plus system time of the whole process over the epoch, imports and planning excluded.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = {  # name: (loader, options of make_plan; packed rows have none)
    "ours, packed rows": ("ours", None),
    "ours, 8 buckets": ("ours", {"num_buckets": 8}),
    "ours, 8 buckets, crops of 15 % at most": ("ours", {"num_buckets": 8, "max_crop": 0.15}),
    "ours, 24 buckets": ("ours", {"num_buckets": 24}),
    "lhotse, 8 buckets": ("lhotse", {"num_buckets": 8}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, default=Path("data/queen-en"), help="folder of a prepared data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--seconds-per-batch", type=float, default=100.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peer-python", help="interpreter with lhotse and torch")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        job = json.loads(args.worker)
        print(json.dumps({"ours": run_ours, "lhotse": run_lhotse}[job.pop("who")](**job)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: row for name, row in ROWS.items() if row[0] == "ours" or args.peer_python}
        if args.peer_python:
            export_clips(args.set, args.split, Path(folder))
        results = {name: [] for name in rows}
        for _ in range(args.runs):
            for name, (who, options) in rows.items():
                job = {"who": who, "options": options, "seconds_per_batch": args.seconds_per_batch}
                job |= {"set_dir": str(args.set), "split": args.split} if who == "ours" else {"folder": folder}
                results[name].append(run_worker(sys.executable if who == "ours" else args.peer_python, job))
    print_table(results)


def run_worker(python: str, job: dict) -> dict:
    """Runs one job in a fresh single-threaded process and returns its measurements."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [python, __file__, "--worker", json.dumps(job)],
        env={**os.environ, **threads, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the worker {job['who']} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Meter:
    """Counts batches, real and padded audio, shapes, and the CPU seconds since it was made."""

    def __init__(self):
        self.real = self.padded = self.batches = 0
        self.shapes = set()
        self._start = self._cpu()

    @staticmethod
    def _cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def add(self, shape: tuple[int, int], lengths) -> None:
        self.real += int(lengths.sum())
        self.padded += shape[0] * shape[1]
        self.batches += 1
        self.shapes.add(shape)

    def result(self) -> dict:
        seconds = self._cpu() - self._start
        return {
            "speed": self.real / 16_000 / seconds,
            "padding": 1 - self.real / self.padded,
            "batches": self.batches,
            "shapes": len(self.shapes),
        }


def run_ours(set_dir: str, split: str, seconds_per_batch: float, options: dict | None) -> dict:
    from data_pipelines.batching.plan import make_plan
    from data_pipelines.batching.rows import make_row_plan
    from data_pipelines.batching.speech import open_batches
    from data_pipelines.storage.index import read_index

    index = read_index(set_dir, split)
    make = make_row_plan if options is None else functools.partial(make_plan, **options)
    plan = make(index.num_samples, seconds_per_batch=seconds_per_batch, seed=0)
    batches = open_batches(index, plan, num_steps=1, parallel=1)
    list(batches)  # TensorFlow is loaded and the record files are open
    meter = Meter()
    for batch in open_batches(index, plan, num_steps=plan.steps_per_epoch, parallel=1):
        meter.add(batch["audio"].shape, batch["audio_length"])
    return meter.result()


def export_clips(set_dir: Path, split: str, folder: Path) -> None:
    """Writes the records' FLAC bytes as one file a clip, and a file of their lengths."""
    from data_pipelines.storage.index import read_index
    from data_pipelines.storage.records import RecordReader

    index = read_index(set_dir, split)
    reader = RecordReader(index)
    for row in range(len(index)):
        (folder / f"{row:08d}.flac").write_bytes(reader.read(row)[0])
    (folder / "lengths.json").write_text(json.dumps(index.num_samples.tolist()))


def run_lhotse(folder: str, seconds_per_batch: float, options: dict) -> dict:
    import torch
    from lhotse import AudioSource, CutSet, MonoCut, Recording
    from lhotse.dataset import DynamicBucketingSampler
    from lhotse.dataset.collation import collate_audio

    torch.set_num_threads(1)
    lengths = json.loads((Path(folder) / "lengths.json").read_text())
    cuts = []
    for row, samples in enumerate(lengths):
        name, seconds = f"{row:08d}", samples / 16_000
        source = AudioSource(type="file", channels=[0], source=f"{folder}/{name}.flac")
        recording = Recording(name, [source], sampling_rate=16_000, num_samples=samples, duration=seconds)
        cuts.append(MonoCut(name, start=0, duration=seconds, channel=0, recording=recording))

    def batches():
        return DynamicBucketingSampler(
            CutSet.from_cuts(cuts),
            max_duration=seconds_per_batch,
            num_buckets=options["num_buckets"],
            shuffle=True,
            seed=0,
            quadratic_duration=None,
        )

    collate_audio(next(iter(batches())))  # the decoders are loaded
    sampler = batches()
    meter = Meter()
    for batch in sampler:
        audio, audio_lengths = collate_audio(batch)
        meter.add(tuple(audio.shape), audio_lengths)
    return meter.result()


def print_table(results: dict[str, list[dict]]) -> None:
    print(f"{'':40} {'audio-s per CPU-s':>18} {'(low to high)':>16} {'padding':>8} {'batches':>8} {'shapes':>7}")
    for name, runs in results.items():
        speeds = [run["speed"] for run in runs]
        span = f"{min(speeds):.0f} to {max(speeds):.0f}"
        padding, batches, shapes = (
            statistics.median(run[key] for run in runs) for key in ("padding", "batches", "shapes")
        )
        print(f"{name:40} {statistics.median(speeds):18.0f} {span:>16} {padding:8.1%} {batches:8.0f} {shapes:7.0f}")


if __name__ == "__main__":
    main()
