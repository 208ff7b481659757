"""K-means of speech units, and the unit ids of prepared speech: one integer per frame, stored next to the index.

A k-means is a folder, written by `jax-speechlm units fit`; a codec's codebook is one too (`jax-speechlm units label`):

    <units>/units.json      frame geometry, fingerprint, and the origin of the centroids
    <units>/centroids.npy   float32 [units, features]

`jax-speechlm units label` writes the unit ids of all utterances next to `index/<split>.parquet`, in the format of
`data_pipelines.storage.tokens`: `<split>.units-<index>-<units>.ids`, native uint16, and `....ends.npy`.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError, disk_full_as_data_error
from data_pipelines.core.files import write_json
from data_pipelines.storage.index import Index, Part
from data_pipelines.storage.tokens import TokenStore, find_ids
from data_pipelines.tokenizers.units import UnitTokenizer

UNLABELLED = np.iinfo(np.uint16).max
"""Marks, in an unfinished file, a frame without a unit id."""

_DTYPE = np.dtype(np.uint16)
_ABOUT = ("fingerprint", "num_units", "frame_samples", "context_samples", "sample_rate", "merges_repeats")
_FILL = 2**20  # ids written at a time

Count = TypeVar("Count", int, np.ndarray)


@dataclasses.dataclass(frozen=True)
class FrameGrid:
    """Position of the frames of an utterance.

    Attributes:
      frame_samples: samples from one frame to the next.
      context_samples: further samples that a frame needs; negative if the front end pads the ends.
    """

    frame_samples: int
    context_samples: int

    def num_frames(self, num_samples: Count) -> Count:
        """Returns the number of frames of an utterance of `num_samples` samples."""
        return np.maximum(num_samples - self.context_samples, 0) // self.frame_samples * (num_samples > 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """A k-means over frames of speech.

    Attributes:
      centroids: float32 [units, features].
      frame_samples: samples from one frame to the next.
      context_samples: further samples that a frame needs; negative if the front end pads the ends.
      about: origin of the centroids.
      sample_rate: of the speech, in Hz.
      merges_repeats: whether language models get one unit for equal units of consecutive frames; not of a codec, whose
        codes are decoded one by one.
    """

    path: Path
    centroids: np.ndarray
    frame_samples: int
    context_samples: int
    about: Mapping[str, Any]
    sample_rate: int = DEFAULT_SAMPLE_RATE
    merges_repeats: bool = True

    def sequence(self, unit_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the units that language models get for frames, and the number of frames of each."""
        if not self.merges_repeats:
            return unit_ids, np.ones(len(unit_ids), np.int64)
        return deduplicate(unit_ids)

    @property
    def num_units(self) -> int:
        return len(self.centroids)

    @property
    def fingerprint(self) -> str:
        """Hex digest that two k-means share only if they assign the same ids to the same features."""
        digest = hashlib.sha256(repr((self.centroids.shape, self.frame_samples, self.context_samples)).encode())
        digest.update(np.ascontiguousarray(self.centroids, "<f4"))
        return digest.hexdigest()[:16]

    @property
    def tokenizer(self) -> UnitTokenizer:
        """Tokenizer of texts that are these units, as `UnitTexts` gives them."""
        return UnitTokenizer(self.num_units, self.fingerprint, self.merges_repeats)

    @property
    def grid(self) -> FrameGrid:
        """Position of the frames that have a unit id."""
        return FrameGrid(self.frame_samples, self.context_samples)

    def num_frames(self, num_samples: Count) -> Count:
        """Returns the number of frames, and so of unit ids, of an utterance of `num_samples` samples."""
        return self.grid.num_frames(num_samples)


def deduplicate(unit_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges equal units of consecutive frames; returns (units, number of frames of the units)."""
    starts = np.flatnonzero(np.diff(unit_ids.astype(np.int64), prepend=-1))
    return unit_ids[starts], np.diff(starts, append=len(unit_ids))


def write_units(units: Units) -> None:
    """Writes the folder of a k-means; the description is written last and marks the centroids as complete.

    Raises:
      DataError: more units than a file of unit ids can distinguish.
    """
    if not 1 <= units.num_units <= UNLABELLED:
        raise DataError(f"{units.path}: {units.num_units} units; there may be 1 to {UNLABELLED}")
    units.path.mkdir(parents=True, exist_ok=True)
    np.save(units.path / "centroids.npy", units.centroids.astype("<f4"), allow_pickle=False)
    about = {name: getattr(units, name) for name in _ABOUT}
    write_json(units.path / "units.json", about | {"about": dict(units.about)})


def read_units(units: Path | str) -> Units:
    """Reads a folder that `jax-speechlm units fit` wrote.

    Raises:
      DataError: the folder is missing, damaged, or its files belong to different k-means.
    """
    folder = Path(units)
    remedy = "fit it again: jax-speechlm units fit"
    if not (folder / "units.json").is_file():
        raise DataError(f"{folder} is not a folder of speech units (units.json is missing); {remedy}")
    try:
        meta = json.loads((folder / "units.json").read_text(encoding="utf-8"))
        centroids = np.load(folder / "centroids.npy", allow_pickle=False)
        rate = meta.get("sample_rate", DEFAULT_SAMPLE_RATE)
        merges = meta.get("merges_repeats", True)
        loaded = Units(folder, centroids, meta["frame_samples"], meta["context_samples"], meta["about"], rate, merges)
        belongs = loaded.fingerprint == meta["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{folder}: its files are damaged ({error!r}); {remedy}") from error
    if not belongs:
        raise DataError(f"{folder}: units.json describes other centroids than centroids.npy; {remedy}")
    return loaded


@dataclasses.dataclass(frozen=True, eq=False)
class UnitIdStore(TokenStore):
    """Unit ids of all rows of an index, uint16; threads may share one.

    A row whose record could not be read during labelling has no ids.

    Attributes:
      lengths: int64 [rows], number of ids per utterance.
      units: the k-means that assigned them.
    """

    units: Units

    @property
    def grid(self) -> FrameGrid:
        """Position of the frames that have a unit id."""
        return self.units.grid


@dataclasses.dataclass(frozen=True)
class UnitTexts(Sequence[str]):
    """The units of every row as a text, "12 5 9", which is made when it is read: what language models get of a row."""

    store: UnitIdStore

    def __len__(self) -> int:
        return len(self.store.lengths)

    def __getitem__(self, row: int) -> str:
        return " ".join(map(str, self.sequence(row).tolist()))

    def sequence(self, row: int) -> np.ndarray:
        """Returns the units of a row."""
        return self.store.units.sequence(self.store.read(row, 0, int(self.store.lengths[row])))[0]

    def token_lengths(self) -> np.ndarray:
        """Returns the number of units of each row, int32 [rows]."""
        return np.fromiter((len(self.sequence(row)) for row in range(len(self))), np.int32, len(self))


def open_unit_ids(index: Index, units: Path | str) -> UnitIdStore:
    """Opens the unit ids that `jax-speechlm units label` assigned to every part of an index.

    Raises:
      DataError: a part is not labelled with these units; the message has the command for it.
    """
    known = read_units(units)
    return UnitIdStore.of(index.first_row, (_open_part(part, known) for part in index.parts), known)


def is_labelled(part: Part, units: Units) -> bool:
    """Returns whether a part has unit ids of this k-means."""
    return _find(part, units) is not None


def _find(part: Part, units: Units) -> tuple[np.ndarray, np.ndarray] | None:
    return find_ids(part.index_path.parent, _name(part, units.fingerprint), _DTYPE, part.num_rows)


def _name(part: Part, fingerprint: str) -> str:
    return f"{part.split}.units-{part.sha256[:16]}-{fingerprint}"


def _open_part(part: Part, units: Units) -> tuple[np.ndarray, np.ndarray]:
    if (existing := _find(part, units)) is not None:
        return existing
    others = list(part.index_path.parent.glob(f"{_name(part, '*')}.ends.npy"))
    also = f"; it is labelled with {len(others)} other k-means" if others else ""
    raise DataError(
        f"{part} is not labelled with the units of {units.path} ({units.fingerprint}){also}. Run: jax-speechlm units "
        f"label {units.path} --sets {part.set_dir.name}:{part.split} --data-dir {part.set_dir.parent}"
    )


class UnitIdWriter:
    """Writes the unit ids of one part, utterance by utterance in any order; continues after an earlier writer stopped.

    Attributes:
      missing: int64 [utterances], rows of the part that have frames but no ids when the writer opens.
    """

    def __init__(self, part: Part, units: Units):
        """
        Raises:
          DataError: the disk is full, or the folder of the index cannot be written.
        """
        self._part, self._num_units = part, units.num_units
        self._lengths = units.num_frames(part.lengths("num_samples"))
        self._ends = np.cumsum(self._lengths)
        self._path = part.index_path.with_name(f"{_name(part, units.fingerprint)}.ids")
        self._partial = self._path.with_name(f"{self._path.name}.partial")
        self._unit_ids = self._open()
        self.missing = self._unlabelled()

    def write(self, row: int, unit_ids: np.ndarray) -> None:
        """Stores the unit ids of a row of the part. A process that is killed at any moment loses only this row.

        Raises:
          ValueError: not one id per frame, or an id that is not a unit.
        """
        if unit_ids.shape != (self._lengths[row],) or not (unit_ids.min() >= 0 and unit_ids.max() < self._num_units):
            raise ValueError(
                f"row {row} of {self._part} has {self._lengths[row]} frames and units 0 to {self._num_units - 1}; got "
                f"unit_ids of shape {unit_ids.shape} from {unit_ids.min()} to {unit_ids.max()}"
            )
        start = self._ends[row] - self._lengths[row]
        self._unit_ids[start + 1 : self._ends[row]] = unit_ids[1:]
        self._unit_ids[start] = unit_ids[0]  # last: it marks the row as complete

    def finish(self, unreadable: Collection[int] = ()) -> None:
        """Renames the file once every row has its ids.

        Args:
          unreadable: rows whose records could not be read; they have no ids.

        Raises:
          ValueError: another row has no ids.
        """
        unlabelled = self._unlabelled()
        if set(unlabelled.tolist()) != set(unreadable):
            raise ValueError(f"{self._part}: {len(unlabelled)} rows have no unit ids, {len(unreadable)} are unreadable")
        lengths = self._lengths.copy()
        lengths[unlabelled] = 0
        partial_ends = self._path.with_name(f"{self._path.stem}.ends.npy.partial")
        with self._named_errors():
            if len(unlabelled):
                whole = np.asarray(self._unit_ids)
                whole[whole != UNLABELLED].tofile(self._partial)
            with partial_ends.open("wb") as file:
                np.save(file, np.cumsum(lengths), allow_pickle=False)
        self._partial.replace(self._path)
        partial_ends.replace(self._path.with_name(f"{self._path.stem}.ends.npy"))

    def _unlabelled(self) -> np.ndarray:
        rows = np.flatnonzero(self._lengths)
        return rows[self._unit_ids[(self._ends - self._lengths)[rows]] == UNLABELLED]

    def _open(self) -> np.ndarray:
        total = int(self._lengths.sum())
        size = total * _DTYPE.itemsize
        with self._named_errors():
            if not self._partial.is_file() or self._partial.stat().st_size != size:
                fresh = self._partial.with_name(f"{self._partial.name}.new")
                with fresh.open("wb") as file:  # all blocks are written: a full disk fails here, not in a mapped page
                    for start in range(0, total, _FILL):
                        file.write(np.full(min(_FILL, total - start), UNLABELLED, _DTYPE).tobytes())
                fresh.replace(self._partial)
        return np.memmap(self._partial, _DTYPE, "r+") if total else np.zeros(0, _DTYPE)

    @contextlib.contextmanager
    def _named_errors(self):
        folder = self._path.parent
        try:
            with disk_full_as_data_error(folder, lambda: self._lengths.sum() * _DTYPE.itemsize):
                yield
        except PermissionError as error:
            raise DataError(
                f"{folder} cannot be written, and unit ids are stored next to their index: change its permissions, or "
                "copy the prepared set and name the copy's folder with --data-dir"
            ) from error
