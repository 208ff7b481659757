"""Cost of preparing an hour of audio and a row of an index: on the one-machine path, and on Beam's direct runner.

    python benchmarks/prepare.py --data-dir data --set asterisk-en

The clips of a prepared set are written out once as 16 kHz FLAC and once as 44.1 kHz MP3 and then prepared again from a
manifest, by one thread and by the direct runner in turn. CPU seconds are of the process, so a busy machine changes them
little. Listing and indexing, which one process does for all workers, are measured on rows without audio.
"""

import argparse
import json
import random
import resource
import statistics
import string
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from interleave import load
from rich.console import Console

from data_pipelines.audio.clips import Audio, Clip, Corpus
from data_pipelines.audio.decode import decode_flac
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE as SAMPLE_RATE
from data_pipelines.core.files import folder_bytes
from data_pipelines.prepare import beam
from data_pipelines.prepare.convert import Format
from data_pipelines.prepare.job import prepare
from data_pipelines.storage import index
from data_pipelines.storage.records import RecordReader

CHARACTERS = 170  # of a transcript: 12 s at 14 a second
WAYS = {"one machine": {"num_workers": 1}, "Beam, direct": {"beam_runner": "DirectRunner"}}


def write_audio(data_dir: Path, name: str, folder: Path, suffix: str, rate: int) -> tuple[Path, float]:
    """Writes the clips of a set as files of one kind, and a manifest; returns it and their hours."""
    rows = index.read_sets(data_dir, [name], "train")
    reader, texts = RecordReader(rows), rows.column("text").to_pylist()
    lines, folder = [], folder / suffix
    folder.mkdir()
    for row, text in enumerate(texts):
        samples = decode_flac(reader.read(row)[0])
        if rate != SAMPLE_RATE:
            samples = soxr.resample(samples, SAMPLE_RATE, rate)
        soundfile.write(folder / f"{row}.{suffix}", samples, rate)
        lines.append(json.dumps({"audio": f"{row}.{suffix}", "text": text, "split": "train"}))
    (folder / "clips.jsonl").write_text("\n".join(lines))
    return folder / "clips.jsonl", float(rows.num_samples.sum()) / SAMPLE_RATE / 3600


def cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def audio_costs(manifest: Path, hours: float, rounds: int) -> None:
    """Prints CPU seconds an hour of both ways, and the bytes that an hour takes."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):  # the first, which imports TFDS and Beam, does not count
        for name, options in WAYS.items():
            with tempfile.TemporaryDirectory() as data_dir:
                before = cpu_seconds()
                prepare(manifest=manifest, data_dir=Path(data_dir), **options)
                if number:
                    seconds[name].append((cpu_seconds() - before) / hours)
                meta = json.loads((Path(data_dir) / "clips/meta.json").read_text())
                clips, index_size = meta["splits"]["train"]["num_clips"], folder_bytes(Path(data_dir) / "clips/index")
    for name, values in seconds.items():
        spread = f"{min(values):6.1f} to {max(values):.1f}"
        print(f"{manifest.parent.name:>6} {name:<14} {statistics.median(values):6.1f} CPU-s an hour ({spread})")
    print(
        f"{'':>6} records {meta['num_bytes'] / hours / 1e6:.1f} MB an hour, index {index_size / clips:.0f} bytes a clip"
    )


class Click(Audio):
    """A sound of a hundredth of a second, at no cost."""

    def decode(self, max_seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
        return np.arange(-80, 80, dtype=np.int16) * 100

    def fingerprint(self) -> str:
        return ""


def row_costs(rows: int, folder: Path) -> None:
    """Prints the cost of listing and indexing per row, with transcripts as long as for 12 s of speech."""

    def items() -> Iterator[Clip]:
        rng = random.Random(0)
        for row in range(rows):
            text = "".join(rng.choices(string.ascii_lowercase + " ", k=CHARACTERS))  # does not compress: at worst
            yield Clip(f"{row:012d}", click, text, "speaker", "en", "train")

    click, work = Click(), folder / "work"
    source = Corpus("rows", "manifest", "rows", "", {}, items)
    before = time.process_time()
    for _ in items():
        pass
    made = time.process_time() - before
    before, peak = time.process_time(), peak_bytes()
    num_chunks, _, dropped = beam._list_clips(source, work, beam.CHUNK_CLIPS)
    listed, grown = time.process_time() - before - made, peak_bytes() - peak
    for chunk in range(num_chunks):
        beam._convert_chunk(chunk, str(work), Format(1.0))
    before = time.process_time()
    beam._index(source, work, num_chunks, dropped, folder, Console(stderr=True))
    written = time.process_time() - before
    size = (folder / "index/train.parquet").stat().st_size
    print(
        f"{rows:,} rows: listing {listed / rows * 1e6:.0f} CPU-µs and {grown / rows:.0f} bytes of memory a row, "
        f"report and index {written / rows * 1e6:.0f} CPU-µs and {size / rows:.0f} bytes on disk a row"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--set", default="asterisk-en")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row_costs(args.rows, Path(folder))
        for suffix, rate in (("flac", SAMPLE_RATE), ("mp3", 44_100)):
            audio_costs(*write_audio(args.data_dir, args.set, Path(folder), suffix, rate), args.rounds)
    print(load())


if __name__ == "__main__":
    main()
