"""Stage 2 of preparation: converted clips to ArrayRecord through TFDS, with an index and `meta.json` beside it."""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_pipelines.audio import SAMPLE_RATE
from data_pipelines.clips import Source
from data_pipelines.convert import Converted
from data_pipelines.errors import DataError, disk_full

META = "meta.json"


def store(source: Source, converted: Sequence[Converted], folder: Path, work: Path, request: dict[str, Any]) -> None:
    """Writes the prepared set into `folder`; `meta.json` comes last, so a set that has one is whole.

    Layout: `<builder>/[<config>/]<version>/` as TFDS writes it, `index/<split>.parquet` whose row i describes record i
    of `tfds.data_source`, and `meta.json`.

    Args:
      work: the folder that the `file`s of `converted` are relative to.
      request: the arguments that shaped the set, so that the same call later finds it done.
    """
    (folder / META).unlink(missing_ok=True)
    if (free := shutil.disk_usage(folder).free) < (needed := sum(item.num_bytes for item in converted)):
        raise disk_full(folder, needed - free)
    records = work / "records.jsonl"
    with records.open("w", encoding="utf-8") as file:
        for item in converted:
            clip = item.clip
            row = {"id": clip.id, "audio": item.file, "text": clip.text, "speaker": clip.speaker}
            row |= {"language": clip.language, "num_samples": item.num_samples, "translation": clip.translation}
            file.write(json.dumps(row | {"split": clip.split}) + "\n")
    tfds_dir = _write_records(source, records, folder)

    splits: dict[str, dict[str, Any]] = {}
    shutil.rmtree(folder / "index", ignore_errors=True)
    (folder / "index").mkdir()
    for split in dict.fromkeys(item.clip.split for item in converted):
        rows = [item for item in converted if item.clip.split == split]
        _check_records(tfds_dir, split, rows)
        path = folder / "index" / f"{split}.parquet"
        pyarrow.parquet.write_table(_index(rows), path)
        splits[split] = {
            "num_clips": len(rows),
            "hours": sum(item.seconds for item in rows) / 3600,
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
        "request": request,
    }
    write_json(folder / META, meta)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def find_prepared(folder: Path, request: dict[str, Any]) -> bool:
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


def folder_bytes(folder: Path) -> int:
    """Total size of the files directly in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_records(source: Source, records: Path, folder: Path) -> Path:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of every config that its code does not list
    shutil.rmtree(folder / source.builder, ignore_errors=True)
    module = importlib.import_module(f"data_pipelines.datasets.{source.builder}.{source.builder}_dataset_builder")
    config = None
    if source.config:
        known = {config.name: config for config in module.Builder.BUILDER_CONFIGS}
        config = known.get(source.config) or tfds.core.BuilderConfig(name=source.config)
    builder = module.Builder(
        records=records, licence=source.licence, data_dir=folder, config=config, file_format="array_record"
    )
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download of unknown size
        builder.download_and_prepare(download_dir=records.parent / "downloads")
    return Path(builder.data_dir)


def _check_records(tfds_dir: Path, split: str, rows: Sequence[Converted]) -> None:
    """Reads back id and length of each record: row i of the index must describe record i."""
    import tensorflow_datasets as tfds

    records = tfds.builder_from_directory(tfds_dir).as_data_source(split)
    stored = [(record["id"].decode(), int(record["num_samples"])) for record in records]
    if stored != [(item.clip.id, item.num_samples) for item in rows]:
        raise DataError(f"{tfds_dir}: split {split!r} does not hold what was written: prepare again with --force.")


def _index(rows: Sequence[Converted]) -> pyarrow.Table:
    strings = {name: [getattr(item.clip, name) for item in rows] for name in ("id", "text", "speaker", "language")}
    return pyarrow.table(
        {
            "id": pyarrow.array(strings["id"], pyarrow.string()),
            "num_samples": pyarrow.array([item.num_samples for item in rows], pyarrow.int64()),
            "text": pyarrow.array(strings["text"], pyarrow.string()),
            "speaker": pyarrow.array(strings["speaker"], pyarrow.string()),
            "language": pyarrow.array(strings["language"], pyarrow.string()),
        }
    )
