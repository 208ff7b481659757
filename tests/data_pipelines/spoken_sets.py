"""Writes the index of prepared speech without records: what is built on lengths, texts, codes and word times needs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.storage.index import Part
from data_pipelines.storage.word_times import write_word_times


def write_spoken_set(set_dir: Path, splits: Mapping[str, Sequence[tuple[str, int]]]) -> Path:
    """Writes an index of (text, samples) by split; there are no records."""
    meta = {"tfds_dir": "records", "splits": {}}
    for split, rows in splits.items():
        path = set_dir / "index" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        blank = [""] * len(rows)
        table = {"id": [f"{split}{row}" for row in range(len(rows))], "speaker": blank, "language": blank}
        table |= {"text": [text for text, _ in rows], "num_samples": [samples for _, samples in rows]}
        pq.write_table(pa.table(table), path)
        meta["splits"][split] = {"index_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (set_dir / "meta.json").write_text(json.dumps(meta))
    return set_dir


def align_evenly(part: Part, failed: Sequence[int] = ()) -> list[np.ndarray | None]:
    """Gives the words of every row equal shares of its audio, with a pause between; rows in `failed` get none."""
    spans: list[np.ndarray | None] = []
    for row, (text, samples) in enumerate(zip(part.texts(), part.lengths("num_samples"), strict=True)):
        bounds = np.linspace(0, samples, len(text.split()) + 1).astype(np.int64)
        inner = np.stack([bounds[:-1] + 100, bounds[1:] - 100], axis=1)
        spans.append(None if row in failed or not len(inner) else inner)
    write_word_times(part, spans, "test")
    return spans
