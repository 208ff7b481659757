"""Time and memory that listings of speech take, by format: what `prepare` does before it decodes.

    python benchmarks/listing.py --rows 1000000 --formats manifest lhotse kaldi kaldi-segments common_voice parquet

Rows are written to a temporary folder without audio (tar files have a few bytes in its place), and each format is
listed by a process of its own. CPU seconds are of that process, so a busy machine changes them little; memory is its
peak, which includes the interpreter with its modules (the last column is that of a listing of one row).
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.audio.clips import Clip
from data_pipelines.sources.speech_formats import guess, speech_source

TEXT = "this is the transcript of utterance {:08d}, as long as most of them are in read speech"


def _id(row: int) -> str:
    return f"{row // 1000:04d}-{row // 100:05d}-{row:08d}"


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_tars(folder: Path, rows: range, suffixes: dict[str, Callable[[int], bytes]], shard: str) -> None:
    for first in range(0, len(rows), 100_000):
        with tarfile.open(folder / shard.format(first // 100_000), "w") as archive:
            for row in rows[first : first + 100_000]:
                for suffix, content in suffixes.items():
                    member = tarfile.TarInfo(f"{_id(row)}.{suffix}")
                    member.size = len(content(row))
                    archive.addfile(member, io.BytesIO(content(row)))


def manifest(folder: Path, rows: range) -> Path:
    audio = ({"audio_filepath": f"wav/{_id(row)}.wav", "duration": 7.5} for row in rows)
    about = ({"text": TEXT.format(row), "speaker": str(row // 1000)} for row in rows)
    _write_lines(folder / "my.jsonl", (json.dumps(a | b) for a, b in zip(audio, about, strict=True)))
    return folder / "my.jsonl"


def stretches(folder: Path, rows: range) -> Path:
    """A manifest of stretches of recordings of 100, which alternate by twos."""
    order = [row for first in rows[::200] for pair in range(100) for row in (first + pair, first + 100 + pair)]
    places = ({"audio": f"wav/{row // 100}.wav", "offset": row % 100 * 8} for row in order if row in rows)
    _write_lines(folder / "my.jsonl", (json.dumps(row | {"duration": 7.5, "text": TEXT.format(0)}) for row in places))
    return folder / "my.jsonl"


def lhotse(folder: Path, rows: range) -> Path:
    def cut(row: int) -> str:
        times = {"start": row % 100 * 8.0, "duration": 7.5, "channel": 0}
        about = {"text": TEXT.format(row), "speaker": str(row // 1000), "language": "English"}
        supervision = {"id": _id(row), "recording_id": str(row // 100), **times, "start": 0.0, **about}
        source = {"type": "file", "channels": [0], "source": f"/data/{row // 100}.wav"}
        recording = {"id": str(row // 100), "sources": [source], "sampling_rate": 16000, "num_samples": 12_800_000}
        recording |= {"duration": 800.0, "channel_ids": [0]}
        row_ = {"id": _id(row), **times, "supervisions": [supervision], "recording": recording, "type": "MonoCut"}
        return json.dumps(row_)

    _write_lines(folder / "cuts.jsonl", map(cut, rows))
    return folder / "cuts.jsonl"


def kaldi(folder: Path, rows: range) -> Path:
    _write_lines(folder / "wav.scp", (f"{_id(row)} flac -c -d -s /data/{_id(row)}.flac |" for row in rows))
    return _kaldi_labels(folder, rows)


def kaldi_segments(folder: Path, rows: range) -> Path:
    _write_lines(folder / "wav.scp", (f"{row // 100} /data/{row // 100}.flac" for row in rows[::100]))
    starts = ((row, row % 100 * 8) for row in rows)
    _write_lines(folder / "segments", (f"{_id(row)} {row // 100} {start} {start + 7.5}" for row, start in starts))
    return _kaldi_labels(folder, rows)


def _kaldi_labels(folder: Path, rows: range) -> Path:
    _write_lines(folder / "text", (f"{_id(row)} {TEXT.format(row)}" for row in rows))
    _write_lines(folder / "utt2spk", (f"{_id(row)} {row // 1000}" for row in rows))
    return folder


def common_voice(folder: Path, rows: range) -> Path:
    (folder / "clips").mkdir()
    header = ["client_id\tpath\tsentence\tup_votes\tage\tgender\taccents\tlocale"]
    fields = (f"{row // 1000:0128d}\t{_id(row)}.mp3\t{TEXT.format(row)}\t2\ttwenties\t\t\ten" for row in rows)
    _write_lines(folder / "train.tsv", iter(header))
    _write_lines(folder / "validated.tsv", (line for lines in (header, fields) for line in lines))
    return folder


def librispeech(folder: Path, rows: range) -> Path:
    for first in rows[::100]:
        chapter = f"{first // 1000:04d}-{first // 100:05d}"
        path = folder / f"train-clean-100/{first // 1000:04d}/{first // 100:05d}/{chapter}.trans.txt"
        _write_lines(path, (f"{_id(row)} {TEXT.format(row)}" for row in rows[first : first + 100]))
    return folder


def parquet(folder: Path, rows: range) -> Path:
    for first in range(0, len(rows), 100_000):
        part = rows[first : first + 100_000]
        audio = [{"bytes": b"sound", "path": f"{row}.flac"} for row in part]
        columns = {"audio": audio, "id": [_id(row) for row in part], "text": [TEXT.format(row) for row in part]}
        table = pa.table(columns | {"speaker_id": [row // 1000 for row in part]})
        pq.write_table(table, folder / f"train-{first // 100_000:05d}-of-00010.parquet", row_group_size=1000)
    return folder


def webdataset(folder: Path, rows: range) -> Path:
    contents = {"flac": lambda row: b"sound", "txt": lambda row: TEXT.format(row).encode()}
    _write_tars(folder, rows, contents, "train-{:06d}.tar")
    return folder


def nemo(folder: Path, rows: range) -> Path:
    _write_tars(folder, rows, {"wav": lambda row: b"sound"}, "audio_{}.tar")
    audio = ({"audio_filepath": f"{_id(row)}.wav", "shard_id": row // 100_000} for row in rows)
    about = ({"duration": 7.5, "text": TEXT.format(row)} for row in rows)
    lines = (json.dumps(a | b) for a, b in zip(audio, about, strict=True))
    _write_lines(folder / "tarred_audio_manifest.json", lines)
    return folder


WRITERS = {
    writer.__name__.replace("kaldi_", "kaldi-"): writer
    for writer in (
        *(manifest, stretches, lhotse, kaldi, kaldi_segments),
        *(common_voice, librispeech, parquet, webdataset, nemo),
    )
}


def list_clips(path: Path) -> None:
    """Lists a file or folder as `prepare` does and prints rows, seconds and MB."""
    start, known = time.process_time(), guess(path)
    clips = [item for item in speech_source(path, "my", known, "none").unique_items() if isinstance(item, Clip)]
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text()  # getrusage's maximum includes the process that started this one
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    print(json.dumps([len(clips), seconds, peak]))


def measured(path: Path) -> tuple[int, float, float]:
    command = [sys.executable, __file__, "--list", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list is not None:
        list_clips(arguments.list)
        return
    print(f"{'format':16} {'rows':>10} {'CPU s':>8} {'MB':>8} {'of one row':>10}")
    for name in arguments.formats:
        results = []
        for rows in (1, arguments.rows):
            with tempfile.TemporaryDirectory() as folder:
                results.append(measured(WRITERS[name](Path(folder), range(rows))))
        (_, _, least), (rows, seconds, megabytes) = results
        print(f"{name:16} {rows:10,} {seconds:8.1f} {megabytes:8.0f} {least:10.0f}", flush=True)


if __name__ == "__main__":
    main()
