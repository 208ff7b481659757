"""Parquet files with embedded sound files, as Hugging Face's data sets have them.

A column, usually `audio`, is a struct with `bytes`, or binary; other columns are named as in manifests. Files named
`train-00000-of-00007.parquet`, or in a folder `train`, are of that split.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.audio.clips import Dropped
from data_pipelines.audio.parquet import ParquetAudio
from data_pipelines.core.errors import DataError
from data_pipelines.sources import manifest_keys as keys
from data_pipelines.sources.listing import Items, SpeechFormat, malformed, split_named
from data_pipelines.sources.manifest import labelled_clip
from data_pipelines.text.normalize import SPLITS

_SHARD = re.compile(r"(.+?)-\d+-of-\d+")
_BATCH = 4096  # rows


def _parquets(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet") for file in path.glob(pattern))


def matches(path: Path) -> bool:
    return path.suffix == ".parquet" if path.is_file() else bool(_parquets(path))


def _split(path: Path, file: Path) -> str:
    """Returns the split that a file of a folder is named after; '' for a file alone, or of another name."""
    if path == file:
        return ""
    if match := _SHARD.fullmatch(file.stem):
        return split_named(match[1])
    return next((split for name in (file.stem, file.parent.name) if (split := split_named(name)) in SPLITS), "")


def clips(path: Path) -> Items:
    """Yields the clips of parquet files; their audio is not read."""
    if not (parquets := _parquets(path)):
        raise DataError(f"{path}: no parquet files")
    folders = {file.parent for file in parquets}
    if len(folders) > 1 and any(_SHARD.fullmatch(file.stem) for file in parquets):
        names = ", ".join(sorted(str(folder.relative_to(path)) for folder in folders))
        raise DataError(f"{path} has several configurations, in {names}: name one of these folders")
    for file in parquets:
        split = _split(path, file)
        try:
            yield from _file_clips(file, split)
        except (OSError, pa.ArrowException) as error:
            detail = f"{file}: cannot be read ({error}); the file may be damaged or cut short: copy it again"
            yield Dropped(file.name, "unreadable file", True, detail)


def _file_clips(path: Path, split: str) -> Items:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        audio, column = _audio_column(path, schema)
        names = _class_names(schema)
        labels = [field.name for field in schema if field.name != audio and _is_label(field.type)]
        location, number = str(path), 0
        for group in range(file.num_row_groups):
            row_of_group = 0
            for batch in _batches(file, group, labels):
                for row in batch:
                    try:
                        row = keys.present(_named(row, names))
                        source = ParquetAudio(location, group, row_of_group, column)
                        if split and "split" not in row:
                            row["split"] = split
                        yield labelled_clip(row, source, f"{path.name}:{number}")
                    except ValueError as error:
                        yield malformed(path, number, error)
                    number, row_of_group = number + 1, row_of_group + 1


def _batches(file: pq.ParquetFile, group: int, labels: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a group in lists, with the columns `labels`."""
    if not labels:
        yield [{} for _ in range(file.metadata.row_group(group).num_rows)]
        return
    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=labels):
        yield batch.to_pylist()


def _is_label(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_integer(type_)


def _audio_column(path: Path, schema: pa.Schema) -> tuple[str, str]:
    """Returns the name of the column with audio, and the path of its bytes."""
    columns = {}
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            columns[field.name] = f"{field.name}.bytes"
        elif pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            columns[field.name] = field.name
    name = "audio" if "audio" in columns else next(iter(columns), None)
    if name is None:
        raise DataError(
            f"{path}: no column has embedded sound files, only {', '.join(schema.names)}; a parquet file of texts is "
            "read with --text"
        )
    return name, columns[name]


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Returns the names of the classes of columns that the data set's description calls class labels."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: list(feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """Returns a row with classes by name."""
    for column, classes in names.items():
        value = row.get(column)
        if isinstance(value, int):
            row[column] = classes[value] if 0 <= value < len(classes) else None
    return row


FORMAT = SpeechFormat("parquet", "parquet files with embedded audio", matches, clips, _parquets)
