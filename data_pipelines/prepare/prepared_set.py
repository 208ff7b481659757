"""Folders of prepared sets, of speech and of text: indexes by split, `meta.json`, and the move into a bucket."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_pipelines.core.files import file_sha256, folder_bytes, write_json
from data_pipelines.core.paths import AnyPath, copy
from data_pipelines.storage.index import META
from data_pipelines.text.normalize import NORMALISER_VERSION


class IndexWriters:
    """Writes `<split>.parquet` for each split of rows in any order; one row group per split is in memory."""

    def __init__(self, folder: Path, schema: pyarrow.Schema, *, row_group: int, compression: str = "snappy"):
        """
        Args:
          folder: of the indexes; its previous content is removed.
          schema: columns, in the order of the values of a row.
          row_group: a row group ends at the row with which the sizes of its rows reach this sum.
        """
        self._folder, self._schema = folder, schema
        self._row_group, self._compression = row_group, compression
        self._files: dict[str, pyarrow.parquet.ParquetWriter] = {}
        self._rows: dict[str, list[tuple]] = {}
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> "IndexWriters":
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self

    def write(self, split: str, row: tuple, size: int = 1) -> None:
        """Appends a row to the index of a split; `size` counts towards the row group."""
        self._rows.setdefault(split, []).append(row)
        self._sizes[split] = self._sizes.get(split, 0) + size
        if self._sizes[split] >= self._row_group:
            self._flush(split)

    def _flush(self, split: str) -> None:
        if split not in self._files:
            path = self._folder / f"{split}.parquet"
            self._files[split] = pyarrow.parquet.ParquetWriter(path, self._schema, compression=self._compression)
        columns = zip(*self._rows.pop(split), strict=True)
        arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._files[split].write_table(pyarrow.table(arrays, schema=self._schema))
        self._sizes[split] = 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for split in list(self._rows):
                self._flush(split)
        for file in self._files.values():
            file.close()


def write_meta(
    folder: Path,
    description: Mapping[str, Any],
    splits: Iterable[tuple[str, Mapping[str, Any]]],
    request: Mapping[str, Any],
) -> None:
    """Writes `meta.json` of a prepared set, whose records and indexes must be complete.

    Args:
      splits: pairs of a split's name and its counts.
      request: the arguments that decide the content of the set, so that the same call later finds it.
    """
    described = {}
    for split, counts in splits:
        index = f"index/{split}.parquet"
        described[split] = {**counts, "index": index, "index_sha256": file_sha256(folder / index)}
    write_json(
        folder / META, {**description, "splits": described, "normaliser": NORMALISER_VERSION, "request": request}
    )


def find_prepared(folder: AnyPath, request: Mapping[str, Any]) -> bool:
    """Returns whether `folder` is a complete set that the same `request` made, according to its `meta.json`."""
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
    """Returns whether a prepared set was made with an earlier version of `data_pipelines.text.normalize.normalise`."""
    try:
        return json.loads((folder / META).read_text("utf-8")).get("normaliser", 1) < NORMALISER_VERSION
    except OSError:
        return False


def publish(folder: Path, target: AnyPath) -> None:
    """Moves a prepared set from a local folder to a bucket, `meta.json` last; the previous set there is removed."""
    target.rmtree(missing_ok=True)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]
    for file in sorted(files, key=lambda file: file == folder / META):
        copy(file, target / file.relative_to(folder))
    shutil.rmtree(folder)
