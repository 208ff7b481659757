"""Second stage of preparing speech: stores converted clips as ArrayRecord through TFDS, with an index and
`meta.json`.
"""

import contextlib
import importlib
import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from data_pipelines.audio.clips import Corpus
from data_pipelines.core.errors import DataError, disk_full
from data_pipelines.core.files import folder_bytes
from data_pipelines.prepare.convert import Converted
from data_pipelines.prepare.prepared_set import IndexWriters, write_meta
from data_pipelines.prepare.report import PreparationReport
from data_pipelines.storage.index import META

_ROW_GROUP = 65_536  # rows
_STRING = pyarrow.string()
SCHEMA = pyarrow.schema(
    [
        ("id", _STRING),
        ("num_samples", pyarrow.int64()),
        ("text", _STRING),
        ("speaker", _STRING),
        ("language", _STRING),
        ("translation", _STRING),
        ("age", _STRING),
        ("gender", _STRING),
        ("accent", _STRING),
        ("intent", _STRING),
        ("slots", _STRING),
    ]
)


class Records(Protocol):
    """Records that a TFDS builder stores."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have records."""

    def examples(self, split: str) -> Any:
        """Returns (key, record) pairs: an iterator with ascending keys, or a Beam transform with any order."""


def store(
    source: Corpus,
    converted: Sequence[Converted],
    report: PreparationReport,
    folder: Path,
    work: Path,
    request: dict[str, Any],
    sample_rate: int,
) -> None:
    """Writes the prepared set into `folder`; `meta.json` is written last, so that it exists only in complete sets.

    Layout: `<builder>/[<config>/]<version>/` as TFDS writes it, `index/<split>.parquet` whose row i describes record i
    of `tfds.data_source`, and `meta.json`.

    Args:
      converted: its clips, ordered by split.
      work: the folder that the `file`s of `converted` are relative to.
      request: the arguments that decide the content of the set, so that the same call later finds it.

    Raises:
      DataError: the disk is full, or the stored records do not match the index.
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
    with index_writers(folder) as writers:
        for item in converted:
            write_row(writers, item)
    for shard in shards(builder, folder):
        check_shard(*shard)
    describe_set(source, report, folder, Path(builder.data_dir), request, sample_rate)


def index_writers(folder: Path) -> IndexWriters:
    """Returns the writers of the indexes of a prepared set of speech."""
    return IndexWriters(folder / "index", SCHEMA, row_group=_ROW_GROUP)


def write_row(writers: IndexWriters, item: Converted) -> None:
    """Writes a clip's row of the index."""
    writers.write(item.clip.split, tuple(record_fields(item).values()))


def record_fields(item: Converted) -> dict[str, Any]:
    """Returns the fields of a clip's record, except the audio, in the order of the index's columns."""
    return {name: getattr(item if name == "num_samples" else item.clip, name) for name in SCHEMA.names}


def describe_set(
    source: Corpus, report: PreparationReport, folder: Path, tfds_dir: Path, request: dict[str, Any], sample_rate: int
) -> None:
    """Writes `meta.json` of a set of speech whose records and indexes are complete."""
    splits = [(split, {"num_clips": row["clips"], "hours": row["hours"]}) for split, row in report.splits.items()]
    description = {
        "name": source.name,
        "builder": source.builder,
        "config": source.config,
        "version": tfds_dir.name,
        "licence": source.licence,
        "source": source.origin,
        "sample_rate": sample_rate,
        "tfds_dir": str(tfds_dir.relative_to(folder)),
        "num_bytes": folder_bytes(tfds_dir),
    }
    write_meta(folder, description, splits, request)


class StoredFiles:
    """Converted clips for a TFDS builder: a JSONL file that lists them, and the FLAC files next to it."""

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


def make_builder(source: Corpus, records: Records, folder: Path) -> Any:
    """Returns the TFDS builder of a corpus, which stores `records` below `folder`; its previous content is removed."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns about every config that its code does not list
    shutil.rmtree(folder / source.builder, ignore_errors=True)
    builder = importlib.import_module("data_pipelines.datasets.builders").BUILDERS[source.builder]
    config = None
    if source.config:
        known = {config.name: config for config in builder.BUILDER_CONFIGS}
        config = known.get(source.config) or tfds.core.BuilderConfig(name=source.config)
    return builder(records=records, licence=source.licence, data_dir=folder, config=config, file_format="array_record")


def generate(builder: Any, work: Path, config: Any = None) -> None:
    """Makes a builder write its records; `config` is TFDS's `DownloadConfig`."""
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download of unknown size
        builder.download_and_prepare(download_dir=work / "downloads", download_config=config)


def shards(builder: Any, folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """Yields the arguments of `check_shard` for every shard that a builder wrote below `folder`."""
    for split, info in builder.info.splits.items():
        first = 0
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            yield str(path), str(folder / "index" / f"{split}.parquet"), first, length
            first += length


def check_shard(path: str, index: str, first: int, length: int) -> None:
    """Compares id and length of the records of a shard with its rows of the index.

    Raises:
      DataError: they differ.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    with ArrayRecordDataSource([path]) as records:
        stored = []
        for record in records:
            feature = tf_example_pb2.Example.FromString(record).features.feature
            id_, num_samples = feature["id"].bytes_list.value[0], feature["num_samples"].int64_list.value[0]
            stored.append((id_.decode(), num_samples))
    rows: list[tuple[str, int]] = []
    skip = first
    with pyarrow.parquet.ParquetFile(index) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if skip < size and len(rows) < length:
                table = file.read_row_group(group, columns=["id", "num_samples"]).slice(skip, length - len(rows))
                rows += zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True)
            skip = max(0, skip - size)
    if stored != rows:
        raise DataError(f"{path} differs from rows {first} to {first + length} of {index}: prepare with --force.")
