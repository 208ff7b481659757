"""Stage 2 of preparation: converted clips to ArrayRecord through TFDS, with an index and `meta.json` beside it."""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from data_pipelines.audio.clips import Corpus
from data_pipelines.core.audio_format import SAMPLE_RATE
from data_pipelines.core.errors import DataError, disk_full
from data_pipelines.core.paths import AnyPath, copy, num_bytes
from data_pipelines.prepare.convert import Converted
from data_pipelines.prepare.report import PreparationReport
from data_pipelines.text.normalize import NORMALISER_VERSION

META = "meta.json"
_ROW_GROUP = 65_536  # rows of an index that are in memory at a time
_STRING = pyarrow.string()
_SCHEMA = pyarrow.schema(
    [
        ("id", _STRING),
        ("num_samples", pyarrow.int64()),
        ("text", _STRING),
        ("speaker", _STRING),
        ("language", _STRING),
        ("translation", _STRING),
    ]
)


class Records(Protocol):
    """What a TFDS builder stores."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have records."""

    def examples(self, split: str) -> Any:
        """(key, record) pairs, keys ascending: an iterator, or a Beam transform that makes them in any order."""


def store(
    source: Corpus,
    converted: Sequence[Converted],
    report: PreparationReport,
    folder: Path,
    work: Path,
    request: dict[str, Any],
) -> None:
    """Writes the prepared set into `folder`; `meta.json` comes last, so a set that has one is whole.

    Layout: `<builder>/[<config>/]<version>/` as TFDS writes it, `index/<split>.parquet` whose row i describes record i
    of `tfds.data_source`, and `meta.json`.

    Args:
      report: about `converted`.
      work: the folder that the `file`s of `converted` are relative to.
      request: the arguments that shaped the set, so that the same call later finds it done.
    """
    (folder / META).unlink(missing_ok=True)
    if (free := shutil.disk_usage(folder).free) < (needed := sum(item.num_bytes for item in converted)):
        raise disk_full(folder, needed - free)
    records = work / "records.jsonl"
    with records.open("w", encoding="utf-8") as file:
        for item in converted:
            file.write(json.dumps({"audio": item.file, "split": item.clip.split, "fields": record_fields(item)}) + "\n")
    builder = make_builder(source, StoredFiles(records), folder)
    generate(builder, work)
    tfds_dir = Path(builder.data_dir)
    with IndexWriters(folder / "index") as writers:
        for item in converted:
            writers.write(item)
    for split in report.splits:
        _check_records(tfds_dir, split, [item for item in converted if item.clip.split == split])
    write_meta(source, report, folder, tfds_dir, request)


def record_fields(item: Converted) -> dict[str, Any]:
    """What a record holds of a clip besides its sound."""
    clip = item.clip
    return {
        "id": clip.id,
        "text": clip.text,
        "speaker": clip.speaker,
        "language": clip.language,
        "num_samples": item.num_samples,
        "translation": clip.translation,
    }


def write_meta(
    source: Corpus, report: PreparationReport, folder: Path, tfds_dir: Path, request: dict[str, Any]
) -> None:
    """Writes `meta.json` over records and indexes that are whole."""
    splits: dict[str, dict[str, Any]] = {}
    for split, row in report.splits.items():
        path = folder / "index" / f"{split}.parquet"
        splits[split] = {
            "num_clips": row["clips"],
            "hours": row["hours"],
            "index": str(path.relative_to(folder)),
            "index_sha256": file_sha256(path),
        }
    meta = {
        "name": source.name,
        "builder": source.builder,
        "config": source.config,
        "version": tfds_dir.name,
        "licence": source.licence,
        "source": source.origin,
        "sample_rate": SAMPLE_RATE,
        "tfds_dir": str(tfds_dir.relative_to(folder)),
        "num_bytes": folder_bytes(tfds_dir),
        "splits": splits,
        "normaliser": NORMALISER_VERSION,
        "request": request,
    }
    write_json(folder / META, meta)


class StoredFiles:
    """Converted clips for a TFDS builder: a JSONL file that lists them, and their FLAC files beside it."""

    def __init__(self, listing: Path):
        self._listing = listing

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self._listing.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row["split"] for row in self._rows()))

    def examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, row in enumerate(self._rows()):
            if row["split"] == split:
                yield key, row["fields"] | {"audio": (self._listing.parent / row["audio"]).read_bytes()}


class IndexWriters:
    """Writes `<split>.parquet` for each split of clips that come in any order of splits, some thousand in memory."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, pyarrow.parquet.ParquetWriter] = {}
        self._rows: dict[str, list[tuple]] = {}

    def __enter__(self) -> "IndexWriters":
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        return self

    def write(self, item: Converted) -> None:
        clip = item.clip
        rows = self._rows.setdefault(clip.split, [])
        rows.append((clip.id, item.num_samples, clip.text, clip.speaker, clip.language, clip.translation))
        if len(rows) == _ROW_GROUP:
            self._flush(clip.split)

    def _flush(self, split: str) -> None:
        if split not in self._files:
            self._files[split] = pyarrow.parquet.ParquetWriter(self._folder / f"{split}.parquet", _SCHEMA)
        columns = zip(*self._rows.pop(split), strict=True)
        arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        self._files[split].write_table(pyarrow.table(arrays, schema=_SCHEMA))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for split in list(self._rows):
                self._flush(split)
        for file in self._files.values():
            file.close()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def find_prepared(folder: AnyPath, request: dict[str, Any]) -> bool:
    """Whether `folder` holds a whole set that the same `request` made: records and indices as `meta.json` tells."""
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        return (
            meta["request"] == json.loads(json.dumps(request))
            and ("tfds_dir" not in meta or folder_bytes(folder / meta["tfds_dir"]) == meta["num_bytes"])
            and all(file_sha256(folder / split["index"]) == split["index_sha256"] for split in meta["splits"].values())
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # absent or damaged


def has_older_texts(folder: AnyPath) -> bool:
    """Whether a prepared set was made when `text.normalise` had an earlier version."""
    try:
        return json.loads((folder / META).read_text("utf-8")).get("normaliser", 1) < NORMALISER_VERSION
    except OSError:
        return False


def publish(folder: Path, place: AnyPath) -> None:
    """Moves a prepared set from a local folder into a bucket, `meta.json` last; what was there before is removed."""
    place.rmtree(missing_ok=True)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]
    for file in sorted(files, key=lambda file: file == folder / META):
        copy(file, place / file.relative_to(folder))
    shutil.rmtree(folder)


def folder_bytes(folder: AnyPath) -> int:
    """Total size of the files directly in a folder."""
    return sum(num_bytes(file) for file in folder.iterdir())


def file_sha256(path: AnyPath) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_builder(source: Corpus, records: Records, folder: Path) -> Any:
    """The TFDS builder of a source, which stores `records` below `folder`; what it stored before is removed."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of every config that its code does not list
    shutil.rmtree(folder / source.builder, ignore_errors=True)
    module = importlib.import_module(f"data_pipelines.datasets.{source.builder}.{source.builder}_dataset_builder")
    config = None
    if source.config:
        known = {config.name: config for config in module.Builder.BUILDER_CONFIGS}
        config = known.get(source.config) or tfds.core.BuilderConfig(name=source.config)
    return module.Builder(
        records=records, licence=source.licence, data_dir=folder, config=config, file_format="array_record"
    )


def generate(builder: Any, work: Path, config: Any = None) -> None:
    """Lets a builder write its records; `config` is TFDS's `DownloadConfig`."""
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download of unknown size
        builder.download_and_prepare(download_dir=work / "downloads", download_config=config)


def _check_records(tfds_dir: Path, split: str, rows: Sequence[Converted]) -> None:
    """Reads back id and length of each record: row i of the index must describe record i."""
    import tensorflow_datasets as tfds

    records = tfds.builder_from_directory(tfds_dir).as_data_source(split)
    stored = [(record["id"].decode(), int(record["num_samples"])) for record in records]
    if stored != [(item.clip.id, item.num_samples) for item in rows]:
        raise DataError(f"{tfds_dir}: split {split!r} does not hold what was written: prepare again with --force.")
