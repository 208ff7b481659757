"""Preparation of speech on Apache Beam: the same set as on one machine, row by row, from any number of workers.

1. This process lists the clips in chunks, `work/clips/<chunk>.jsonl`.
2. Each worker converts a chunk at a time: `work/sounds/<chunk>.flac` is the concatenation of its FLAC files,
   `<chunk>.jsonl` the outcome of every clip. Chunks that exist already are not converted again, so a killed preparation
   continues.
3. This process reads these outcomes in order, with some thousand rows in memory, and writes report and index.
4. The TFDS builder's own Beam pipeline brings the records into the order of the list, in ArrayRecord shards.
5. Workers compare every shard with its rows of the index. Then `meta.json` marks the set as complete.

All workers need access to `folder`: a local disk for runners that stay on this machine, otherwise NFS or a mounted
bucket.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.audio.clips import AudioFile, Clip, Corpus, Dropped
from data_pipelines.audio.decode import Levels
from data_pipelines.audio.voice import VoiceChange
from data_pipelines.core.errors import DataError
from data_pipelines.core.files import write_bytes
from data_pipelines.core.grouping import group_by_size
from data_pipelines.prepare.clip_files import clip_fields, read_clips, write_clips
from data_pipelines.prepare.convert import (
    Converted,
    Format,
    Sound,
    by_recording,
    check_bad,
    convert_clips,
    nothing_left,
)
from data_pipelines.prepare.report import PreparationReport, summarise
from data_pipelines.prepare.speech_store import (
    check_shard,
    describe_set,
    generate,
    index_writers,
    make_builder,
    record_fields,
    shards,
    write_row,
)
from data_pipelines.prepare.voice import SpeechRate, misfit, speech_rate
from data_pipelines.storage.index import META

CHUNK_CLIPS = 256


@dataclasses.dataclass(frozen=True)
class Runner:
    """A runner of Beam pipelines.

    Attributes:
      name: Beam's name of the runner.
      options: of the runner, as `name=value`, without dashes.
      chunk_clips: clips that a worker converts at a time; their FLAC is in its memory.
    """

    name: str
    options: tuple[str, ...] = ()
    chunk_clips: int = CHUNK_CLIPS

    def pipeline_options(self) -> Any:
        """Returns Beam's `PipelineOptions`."""
        from apache_beam.options.pipeline_options import PipelineOptions

        return PipelineOptions([f"--{option.lstrip('-')}" for option in self.options])


def prepare_on_beam(
    source: Corpus, folder: Path, request: dict[str, Any], runner: Runner, form: Format, *, max_bad: float
) -> PreparationReport:
    """Converts the clips of `source` and stores them in `folder`; arguments as in `prepare`.

    Bad items are counted once all clips are converted, since workers do not share counts.

    Returns:
      Counts of kept and dropped clips.

    Raises:
      DataError: Beam is not installed, too many bad items, no clip is left, or records do not match the index.
    """
    try:
        import apache_beam as beam
    except ImportError as error:
        raise DataError("Beam is not installed: pip install 'jax_speechlm[beam]'") from error
    console = Console(stderr=True)
    work = folder / "work"
    (folder / META).unlink(missing_ok=True)
    with console.status(f"{source.name}: listing clips"):
        num_chunks, num_clips, dropped = _list_clips(source, work, runner.chunk_clips)
    allowed = int(max_bad * (num_clips + len(dropped)))
    check_bad(dropped, allowed)
    with (
        console.status(f"{source.name}: {runner.name} converts {num_clips:,} clips"),
        beam.Pipeline(runner.name, runner.pipeline_options()) as pipeline,
    ):
        chunks = pipeline | beam.Create(range(num_chunks)) | beam.Reshuffle()
        _ = chunks | beam.Map(_convert_chunk, str(work), form)
    rate = _speech_rate(work, num_chunks) if form.voice is not None else None
    report = _index(source, work, num_chunks, dropped, folder, console, rate)
    check_bad(dropped, allowed)
    if not report.clips:
        report.print(console)
        raise nothing_left(source.name, f"{len(dropped)} items")
    with console.status(f"{source.name}: {runner.name} writes {report.clips:,} records"):
        chunks = Chunks(work, num_chunks, runner.chunk_clips, tuple(report.splits), rate)
        tfds_dir = _write_records(source, chunks, folder, runner)
    report.save(folder / "report.json")
    describe_set(source, report, folder, tfds_dir, request, form.sample_rate)
    shutil.rmtree(work)
    return report


def _list_clips(source: Corpus, work: Path, chunk_clips: int) -> tuple[int, int, list[Dropped]]:
    """Writes a corpus's clips in chunks. Returns the numbers of chunks and clips, and the items that it dropped."""
    for name in ("clips", "sounds"):
        (work / name).mkdir(parents=True, exist_ok=True)
    dropped: list[Dropped] = []

    def clips() -> Iterator[Clip]:
        for item in source.unique_items():
            if isinstance(item, Dropped):
                dropped.append(item)
            else:
                yield item

    num_chunks = num_clips = 0
    for chunk in group_by_size(clips(), lambda _: 1, chunk_clips):
        write_clips(_clips_path(work, num_chunks), chunk)
        num_chunks, num_clips = num_chunks + 1, num_clips + len(chunk)
    return num_chunks, num_clips, dropped


def _convert_chunk(chunk: int, work: str, form: Format) -> None:
    """Converts the clips of one chunk, unless that was done from the same audio in the same form."""
    clips = read_clips(_clips_path(Path(work), chunk))
    outcomes_path = _outcomes_path(Path(work), chunk)
    inputs = [[clip_fields(clip), clip.audio.fingerprint()] for clip in clips]
    digest = hashlib.sha256(json.dumps([inputs, form]).encode()).hexdigest()
    if outcomes_path.exists():
        with outcomes_path.open(encoding="utf-8") as lines:
            if json.loads(next(lines)) == digest:
                return
    rows: list[Any] = [digest]
    sounds: list[bytes] = []
    start = 0
    for clip, sound in _converted(clips, form):
        if isinstance(sound, Dropped):
            rows.append({"dropped": dataclasses.asdict(sound)})
            continue
        row = {"clip": clip_fields(clip), "start": start, "num_bytes": len(sound.flac)}
        row |= {"num_samples": sound.num_samples, "seconds": sound.seconds, "levels": dataclasses.asdict(sound.levels)}
        if sound.change is not None:
            row["change"] = dataclasses.asdict(sound.change)
        rows.append(row)
        sounds.append(sound.flac)
        start += len(sound.flac)
    write_bytes(outcomes_path.with_suffix(".flac"), b"".join(sounds))
    write_bytes(outcomes_path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _converted(clips: Sequence[Clip], form: Format) -> Iterator[tuple[Clip, Sound | Dropped]]:
    """Yields clips in order, each with its sound or the reason why it is dropped."""
    for group in by_recording(clips):
        sounds = dict(convert_clips(group, form))
        yield from ((clip, sounds[index]) for index, clip in enumerate(group))


def _clips_path(work: Path, chunk: int) -> Path:
    return work / "clips" / f"{chunk:08d}.jsonl"


def _outcomes_path(work: Path, chunk: int) -> Path:
    return work / "sounds" / f"{chunk:08d}.jsonl"


def _outcomes(work: Path, chunk: int) -> Iterator[Dropped | tuple[Converted, int]]:
    """Yields the outcomes of a chunk's clips, in order: a converted clip has the offset of its FLAC in the chunk's
    file.
    """
    with _outcomes_path(work, chunk).open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            row = json.loads(line)
            if "dropped" in row:
                yield Dropped(**row["dropped"])
                continue
            clip = Clip(audio=AudioFile(str(work)), **row["clip"])  # a placeholder: it is not decoded again
            length = row["num_samples"], row["seconds"]
            change = VoiceChange(**row["change"]) if "change" in row else None
            item = Converted(clip, f"{chunk:08d}.flac", row["num_bytes"], *length, Levels(**row["levels"]), change)
            yield item, row["start"]


def _speech_rate(work: Path, num_chunks: int) -> SpeechRate | None:
    outcomes = (outcome for chunk in range(num_chunks) for outcome in _outcomes(work, chunk))
    return speech_rate((item[0].clip.text, item[0].seconds) for item in outcomes if not isinstance(item, Dropped))


def _index(
    source: Corpus,
    work: Path,
    num_chunks: int,
    dropped: list[Dropped],
    folder: Path,
    console: Console,
    rate: SpeechRate | None = None,
) -> PreparationReport:
    """Writes the indexes of all kept clips in `folder`; appends clips that were dropped to `dropped`."""

    def kept() -> Iterator[Converted]:
        for chunk in range(num_chunks):
            for outcome in _outcomes(work, chunk):
                wrong = outcome if isinstance(outcome, Dropped) else misfit(outcome[0], rate)
                if wrong is not None:
                    dropped.append(wrong)
                else:
                    write_row(writers, outcome[0])
                    yield outcome[0]

    with console.status(f"{source.name}: writing the index"), index_writers(folder) as writers:
        return summarise(source.name, kept(), dropped, rate)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Converted clips for a TFDS builder that runs on Beam; `speech_store.Records`."""

    work: Path
    num_chunks: int
    chunk_clips: int
    splits: tuple[str, ...]
    rate: SpeechRate | None = None

    def examples(self, split: str) -> Any:
        import apache_beam as beam

        return (
            f"{split}_chunks" >> beam.Create(range(self.num_chunks))
            | f"{split}_spread" >> beam.Reshuffle()
            | f"{split}_read" >> beam.FlatMap(_examples, str(self.work), split, self.chunk_clips, self.rate)
        )


def _examples(
    chunk: int, work: str, split: str, chunk_clips: int, rate: SpeechRate | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (key, record) pairs of one chunk's kept clips of a split; keys grow with the position in the list."""
    with _outcomes_path(Path(work), chunk).with_suffix(".flac").open("rb") as sounds:
        for position, outcome in enumerate(_outcomes(Path(work), chunk)):
            if isinstance(outcome, Dropped) or outcome[0].clip.split != split:
                continue
            item, start = outcome
            if misfit(item, rate) is not None:
                continue
            sounds.seek(start)
            yield chunk * chunk_clips + position, record_fields(item) | {"audio": sounds.read(item.num_bytes)}


def _write_records(source: Corpus, chunks: Chunks, folder: Path, runner: Runner) -> Path:
    import apache_beam as beam
    import tensorflow_datasets as tfds

    builder = make_builder(source, chunks, folder)
    config = tfds.download.DownloadConfig(beam_runner=runner.name, beam_options=runner.pipeline_options())
    generate(builder, chunks.work, config)
    with beam.Pipeline(runner.name, runner.pipeline_options()) as pipeline:
        _ = pipeline | beam.Create(list(shards(builder, folder))) | beam.Reshuffle() | beam.MapTuple(check_shard)
    return Path(builder.data_dir)
