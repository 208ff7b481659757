"""Writes tiny prepared sets: real TFDS records and real FLAC, as `data_pipelines.storage.index` describes them."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

STRINGS = ("id", "text", "speaker", "language", "translation")


def noise(seed: int, num_samples: int) -> np.ndarray:
    """int16 [num_samples], different for every seed."""
    return np.random.default_rng(seed).integers(-3000, 3000, num_samples).astype(np.int16)


def flac(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_prepared(
    set_dir: Path,
    clips: dict[str, Sequence[tuple[np.ndarray, str]]],
    corrupt: Sequence[int] = (),
    speakers: dict[str, str] | None = None,
) -> Path:
    """Writes a prepared set.

    Args:
      set_dir: folder to make.
      clips: (int16 [samples], text) of every record, by split.
      corrupt: numbers of records, in every split, whose audio is not FLAC.
      speakers: who speaks in each split; by default two by turns.
    """
    import tensorflow_datasets as tfds

    features = {name: tfds.features.Text() for name in STRINGS}
    features |= {"audio": tfds.features.Scalar(np.object_), "num_samples": tfds.features.Scalar(np.int64)}
    rows = {split: [_row(i, *clip) for i, clip in enumerate(content)] for split, content in clips.items()}
    for split, speaker in (speakers or {}).items():
        rows[split] = [row | {"speaker": speaker} for row in rows[split]]
    records = {
        split: [
            (i, {**row, "audio": b"fLaC but no more" if i in corrupt else flac(clip[0])})
            for i, (row, clip) in enumerate(zip(rows[split], clips[split], strict=True))
        ]
        for split in clips
    }
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets=records,
        data_dir=set_dir,
        file_format="array_record",
        disable_shuffling=True,
    )
    meta = {"tfds_dir": str(Path(builder.data_dir).relative_to(set_dir)), "splits": {}}
    for split, content in rows.items():
        path = set_dir / "index" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        columns = ("id", "num_samples", "text", "speaker", "language")
        pq.write_table(pa.table({name: [row[name] for row in content] for name in columns}), path)
        meta["splits"][split] = {"index_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (set_dir / "meta.json").write_text(json.dumps(meta))
    return set_dir


def _row(number: int, samples: np.ndarray, text: str) -> dict:
    return {
        "id": f"clip{number}",
        "num_samples": len(samples),
        "text": text,
        "speaker": f"speaker{number % 2}",
        "language": "en",
        "translation": "",
    }
