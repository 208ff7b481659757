"""The index of prepared sets: a description of every record that can be read without the records.

A prepared set is a folder:

    <set>/meta.json              description of the set: location of its records, a sha256 of each index file
    <set>/index/<split>.parquet  of speech, row i describes record i: id, num_samples, text, speaker, language,
                                 translation (English), age, gender, accent, intent, slots (JSON);
                                 of text, row i is document i: id, text, language, source, label, target, num_bytes
                                 (UTF-8)
    <set>/<tfds_dir>/            the records of speech, as TFDS writes them (ArrayRecord)

An `Index` concatenates one split of one or more sets; the number of a row in it is the `example_id` of a batch. Columns
are read on demand, and lengths are kept: ten million rows of speech use 80 MB. Sets of speech and of text may be
combined if only their texts are read.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError
from data_pipelines.core.files import file_sha256, replacing, short_digest
from data_pipelines.core.paths import AnyPath, as_path, cache_dir, fetch, is_url
from data_pipelines.core.shuffle import derive_key, permute
from data_pipelines.core.tokenizer import Tokenizer

META = "meta.json"
# Sets by earlier versions lack some.
_LATER_COLUMNS = ("translation", "age", "gender", "accent", "intent", "slots", "target")
_STRING_COLUMNS = ("id", "text", "speaker", "language", *_LATER_COLUMNS, "source", "label")


class IndexMismatchError(DataError):
    """An index does not belong to the records or the description of its set."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One split of one prepared set.

    Attributes:
      set_dir: folder of the prepared set; for a set in a bucket, the local folder that its index is copied to.
      records_dir: folder or URL of the TFDS records; None for text, whose documents are in the index itself.
      sha256: digest of the index file.
      is_relabelled: whether its texts differ from the texts in the records.
      sample_rate: of its audio, in Hz.
    """

    set_dir: Path
    split: str
    records_dir: AnyPath | None
    num_rows: int
    sha256: str
    is_relabelled: bool = False
    sample_rate: int = DEFAULT_SAMPLE_RATE

    @property
    def index_path(self) -> Path:
        return self.set_dir / "index" / f"{self.split}.parquet"

    def __str__(self) -> str:
        return f"{self.set_dir.name}/{self.split}"

    @property
    def remedy(self) -> str:
        """Advice for error messages if index and records disagree."""
        return _remedy(self.set_dir)

    def column(self, name: str) -> pa.ChunkedArray:
        """Reads a string column of the index file from disk, at every call."""
        return self._read(name).cast(pa.large_string())  # large: 10 million transcripts may pass 2 GB

    def lengths(self, name: str) -> np.ndarray:
        """Reads a column of lengths, num_samples or num_bytes, as int64 [rows]."""
        return self._read(name).to_numpy().astype(np.int64)

    def texts(self, column: str = "text") -> Iterator[str]:
        """Yields the texts of all rows, with some thousand in memory at a time."""
        self._require(column)
        with pq.ParquetFile(self.index_path, memory_map=True) as file:
            for batch in file.iter_batches(4096, columns=[column]):
                yield from batch.column(0).to_pylist()

    @property
    def has_targets(self) -> bool:
        """Whether documents may have a target."""
        return "target" in pq.read_schema(self.index_path).names

    def written(self) -> Iterator[str]:
        """Yields the texts of all rows, then their targets."""
        yield from self.texts()
        if self.has_targets:
            yield from filter(None, self.texts("target"))

    def _require(self, name: str) -> None:
        if name not in (known := pq.read_schema(self.index_path).names):
            later = ". Sets that were prepared by earlier versions lack it: prepare again with --force"
            remedy = later if name in _LATER_COLUMNS else ""
            raise DataError(f"{self} has no column {name!r}; it has {', '.join(known)}{remedy}")

    def _read(self, name: str) -> pa.ChunkedArray:
        self._require(name)
        return pq.read_table(self.index_path, columns=[name], memory_map=True).column(name)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Rows of one or more parts, concatenated.

    Attributes:
      parts: sources of the rows, in order.
    """

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return int(self.first_row[-1])

    @functools.cached_property
    def num_samples(self) -> np.ndarray:
        """int64 [rows], lengths of the audio in samples; DataError if a part is text."""
        return np.concatenate([part.lengths("num_samples") for part in self.parts])

    @property
    def sample_rate(self) -> int:
        """Rate of the audio in Hz; DataError if parts differ in it."""
        speech = [part for part in self.parts if part.records_dir is not None]
        for part in speech:
            if part.sample_rate != (rate := speech[0].sample_rate):
                raise DataError(
                    f"{speech[0]} is sampled at {rate} Hz and {part} at {part.sample_rate} Hz: prepare both with the "
                    "same --sample-rate"
                )
        return speech[0].sample_rate if speech else DEFAULT_SAMPLE_RATE

    @functools.cached_property
    def first_row(self) -> np.ndarray:
        """int64 [parts + 1]: part p has the rows from first_row[p] up to first_row[p + 1]."""
        return np.cumsum([0] + [part.num_rows for part in self.parts])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the content of the index, independent of the location of its files."""
        return short_digest("\n".join(part.sha256 for part in self.parts).encode())

    def locate(self, row: int) -> tuple[Part, int]:
        """Returns the part of a row, and the number of its record there."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside an index of {len(self)} rows")
        part = int(np.searchsorted(self.first_row, row, side="right")) - 1
        return self.parts[part], row - int(self.first_row[part])

    def is_in_records(self, name: str) -> bool:
        """Returns whether the records of speech contain this column's texts too."""
        return name == "text" and not any(part.is_relabelled for part in self.parts)

    def column(self, name: str) -> pa.ChunkedArray:
        """Reads a string column of all rows from disk, at every call.

        Every set has id, text and language; speech has speaker, text has source and label.

        Raises:
          DataError: a part does not have the column.
        """
        if name not in _STRING_COLUMNS:
            raise KeyError(f"an index has no string column {name!r}; it has {', '.join(_STRING_COLUMNS)}")
        return pa.chunked_array([chunk for part in self.parts for chunk in part.column(name).chunks], pa.large_string())


def splits_of(set_dir: os.PathLike | str) -> tuple[str, ...]:
    """Returns the names of the splits of a prepared set."""
    return tuple(_read_meta(as_path(set_dir))["sha256"])


def read_index(set_dirs: os.PathLike | str | Sequence[os.PathLike | str], split: str) -> Index:
    """Reads one split of prepared sets and checks each index file against its set's description.

    Args:
      set_dirs: folder or URL of a prepared set, or several to concatenate in this order.
      split: "train", "dev" or "test".

    Raises:
      DataError: a set or its split is missing.
      IndexMismatchError: an index file differs from its description in `meta.json`.
    """
    if isinstance(set_dirs, os.PathLike | str):
        set_dirs = [set_dirs]
    if not set_dirs:
        raise ValueError("an index needs at least one prepared set")
    return Index(tuple(_read_part(as_path(set_dir), split) for set_dir in set_dirs))


def read_sets(data_dir: os.PathLike | str, names: Sequence[str], split: str, sample_rate: int | None = None) -> Index:
    """Reads sets by name and concatenates them: `name` is its split `split`, `name:other` its split `other`.

    Args:
      sample_rate: of the front end that computes features of the audio, in Hz; None if the audio is not used.

    Raises:
      DataError, IndexMismatchError: as `read_index`, or the audio has another rate.
    """
    named = [name.partition(":") for name in names]
    indexes = [read_index(as_path(data_dir) / name, chosen or split) for name, _, chosen in named]
    if not indexes:
        raise ValueError("an index needs at least one prepared set")
    index = Index(tuple(part for index in indexes for part in index.parts))
    if sample_rate is not None and index.sample_rate != sample_rate:
        raise DataError(
            f"{' + '.join(map(str, index.parts))} is sampled at {index.sample_rate} Hz and the front end at "
            f"{sample_rate} Hz: prepare it again with --sample-rate {sample_rate}, or train with "
            f"--frontend.mel.sample-rate {index.sample_rate}"
        )
    return index


def sample_texts(index: Index, max_characters: int, column: str = "text", seed: int = 0) -> list[str]:
    """Returns texts of an index in row order: all, or random rows (without replacement) up to about
    `max_characters`.
    """
    texts = index.column(column)
    total = pc.sum(pc.utf8_length(texts)).as_py() or 0
    if total <= max_characters:
        return texts.to_pylist()
    order = permute(np.arange(len(texts)), len(texts), derive_key(seed))
    sizes = pc.utf8_length(texts).to_numpy()[order]
    chosen = order[: int(np.searchsorted(np.cumsum(sizes), max_characters)) + 1]
    return texts.take(pa.array(np.sort(chosen))).to_pylist()


def token_lengths(index: Index, tokenizer: Tokenizer, column: str = "text") -> np.ndarray:
    """Computes the number of tokens of every row's text, or of another column.

    Encoding takes some 3 microseconds per sentence, and is done once: the counts of a part are stored next to its index
    file, under the fingerprints of index and tokenizer (unless that folder cannot be written).

    Returns:
      int32 [rows].
    """
    return np.concatenate([_part_token_lengths(part, tokenizer, column) for part in index.parts])


def _part_token_lengths(part: Part, tokenizer: Tokenizer, column: str) -> np.ndarray:
    kind = "tokens" if column == "text" else f"{column}-tokens"
    cache = part.index_path.with_name(f"{part.split}.{kind}-{part.sha256[:16]}-{tokenizer.fingerprint}.npy")
    try:
        lengths = np.load(cache, allow_pickle=False)
        if lengths.shape == (part.num_rows,) and lengths.dtype == np.int32:
            return lengths
    except (OSError, ValueError, EOFError):
        pass  # absent or cut short: make it again
    lengths = np.fromiter((len(tokenizer.encode(text)) for text in part.texts(column)), np.int32, part.num_rows)
    # If the folder cannot be written, the counts are made again next time.
    with contextlib.suppress(OSError), replacing(cache) as partial, partial.open("wb") as file:
        np.save(file, lengths, allow_pickle=False)
    return lengths


def _remedy(set_dir: AnyPath) -> str:
    return f"prepare the set again: jax-speechlm prepare {set_dir.name}"


def _read_meta(set_dir: AnyPath) -> dict:
    path = set_dir / META
    if not path.exists():
        raise DataError(
            f"{set_dir} is not a prepared data set ({path.name} is missing). Prepare it: jax-speechlm prepare "
            f"{set_dir.name}; or, if it is of your own recordings: jax-speechlm prepare --manifest {set_dir.name}.jsonl"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        return {
            "records_dir": set_dir / meta["tfds_dir"] if "tfds_dir" in meta else None,
            "is_relabelled": meta.get("is_relabelled", False),
            "sample_rate": int(meta.get("sample_rate", DEFAULT_SAMPLE_RATE)),
            "sha256": {name: split["index_sha256"] for name, split in meta["splits"].items()},
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexMismatchError(f"{path} is damaged ({error!r}); {_remedy(set_dir)}") from error


def _read_part(set_dir: AnyPath, split: str) -> Part:
    meta = _read_meta(set_dir)
    if split not in meta["sha256"]:
        raise DataError(f"{set_dir} has no split {split!r}; it has {', '.join(sorted(meta['sha256']))}")
    path = set_dir / "index" / f"{split}.parquet"
    if not path.exists():
        raise DataError(f"{path} is missing; {_remedy(set_dir)}")
    if is_url(set_dir):  # the index is mapped into memory, and derived files are stored next to it
        set_dir = cache_dir() / "sets" / meta["sha256"][split][:16] / set_dir.name
        fetch([path], set_dir / "index")
        path = set_dir / "index" / path.name
    digest = file_sha256(path)
    if digest != meta["sha256"][split]:
        raise IndexMismatchError(f"{path} is not the index that its meta.json describes; {_remedy(set_dir)}")
    num_rows = pq.read_metadata(path).num_rows
    return Part(set_dir, split, meta["records_dir"], num_rows, digest, meta["is_relabelled"], meta["sample_rate"])
