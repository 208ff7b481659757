"""Prepared sets with other transcripts: an index of their own, and the records of the original set."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import file_sha256, write_json
from data_pipelines.storage.index import META, Part


def relabel(part: Part, texts: Sequence[str], folder: Path, origin: dict[str, Any]) -> None:
    """Writes a set whose only split has the audio of `part` and other texts. No audio is copied.

    Rows keep their numbers, since row i of an index describes record i. An empty text marks a row to leave out: plans
    for training on text drop and count it.

    Args:
      texts: one per row of the part.
      folder: of the new set; an earlier set of this kind is replaced.

    Raises:
      DataError: the part has no records, or `folder` contains another kind of set.
    """
    if part.records_dir is None:
        raise DataError(f"{part} is text, without audio to transcribe; name a set of speech")
    if folder.exists() and not _is_relabelled(folder):
        raise DataError(f"{folder} exists, and is no set of pseudo-labels: name another --out, or remove it")
    meta = json.loads((part.set_dir / META).read_text("utf-8"))
    table = pyarrow.parquet.read_table(part.index_path)
    column = pyarrow.array(texts, pyarrow.string())
    table = table.set_column(table.schema.get_field_index("text"), "text", column)
    (folder / "index").mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)  # written last: it exists only in complete sets
    path = folder / "index" / f"{part.split}.parquet"
    pyarrow.parquet.write_table(table, path)
    split = meta["splits"][part.split] | {"index_sha256": file_sha256(path)}
    meta |= {
        "name": folder.name,
        "source": origin,
        "is_relabelled": True,
        "tfds_dir": os.path.relpath(part.records_dir, folder),
        "splits": {part.split: split},
        "request": {"relabelled": str(part)},
    }
    write_json(folder / META, meta)


def _is_relabelled(folder: Path) -> bool:
    try:
        return json.loads((folder / META).read_text("utf-8")).get("is_relabelled", False)
    except FileNotFoundError:
        return not any(folder.glob("*.*"))  # begun, but not finished
    except ValueError:
        return False
