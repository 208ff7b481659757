"""Writes tiny prepared sets of text, in the form that `data_pipelines.storage.index` describes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_text_set(set_dir: Path, texts: Mapping[str, Sequence[str]], **columns: Sequence[str]) -> Path:
    """Writes a prepared set of text: its texts by split, and further columns of every split."""
    splits = {}
    for split, rows in texts.items():
        path = set_dir / "index" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        blank = [""] * len(rows)
        table = {"id": [f"{split}{row}" for row in range(len(rows))], "text": list(rows)}
        table |= {name: list(columns.get(name, blank)) for name in ("language", "source", "label")}
        pq.write_table(pa.table(table | {"num_bytes": [len(text.encode()) for text in rows]}), path)
        splits[split] = {"index_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (set_dir / "meta.json").write_text(json.dumps({"kind": "text", "splits": splits}))
    return set_dir
