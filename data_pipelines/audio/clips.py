"""What a source of speech hands to preparation: clips, and what it left out."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.audio.decode import SAMPLE_RATE, AudioError, decode


class Audio(Protocol):
    """Where the sound of a clip is, and how to read it."""

    def decode(self, max_seconds: float) -> NDArray[np.int16]:
        """int16 [samples] at 16 kHz mono; see `data_pipelines.audio.decode.decode`."""

    def fingerprint(self) -> str:
        """Changes when the stored sound changes, so that a resumed preparation knows what it can keep."""


@dataclass(frozen=True)
class AudioFile:
    """A sound file.

    Attributes:
      seconds: how long it is said to be; another length is an error. None where nothing is said.
    """

    path: Path
    seconds: float | None = None

    def decode(self, max_seconds: float) -> NDArray[np.int16]:
        check_path(self.path)
        samples = decode(self.path, max_seconds=max_seconds)
        if (wrong := wrong_length(self.path, len(samples) / SAMPLE_RATE, self.seconds)) is not None:
            raise wrong
        return samples

    def fingerprint(self) -> str:
        stamp = file_stamp(self.path)
        return stamp if self.seconds is None else f"{stamp} {self.seconds}"


def file_stamp(path: Path) -> str:
    """Changes when a file does."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return f"{path} missing"
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def check_path(path: Path) -> None:
    """Raises AudioError for a path that no file can have, or that must not be followed."""
    try:
        path.stat()
    except FileNotFoundError:
        pass  # the decoder's own error has the remedy
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) < 300 else f"{str(path)[:300]}..."
        raise AudioError(shown, "cannot be opened", f"correct the path or its permissions ({error})") from error


def wrong_length(path: Path, found: float, stated: float | None) -> AudioError | None:
    """What is wrong where a file lasts `found` seconds and its manifest says `stated`."""
    if stated is None or abs(found - stated) <= tolerance(stated):
        return None
    remedy = (
        f'"duration" says {stated:g} s, and the file lasts {found:.2f} s: remove the duration, or add "offset": 0 '
        "where the text is that of a stretch"
    )
    return AudioError(str(path), "duration contradicts the file", remedy)


def tolerance(seconds: float) -> float:
    """By how many seconds a stated duration may be wrong: they are rounded, and encoders pad."""
    return max(0.1, 0.01 * seconds)


@dataclass(frozen=True)
class AudioSlice:
    """A sound file within an archive: `size` bytes from `offset`."""

    path: Path
    name: str
    offset: int
    size: int

    def decode(self, max_seconds: float) -> NDArray[np.int16]:
        with self.path.open("rb") as archive:
            archive.seek(self.offset)
            content = archive.read(self.size)
        if len(content) < self.size:
            raise AudioError(f"{self.path}:{self.name}", "truncated archive", "delete it and prepare again")
        return decode(content, name=f"{self.path}:{self.name}", max_seconds=max_seconds)

    def fingerprint(self) -> str:
        return f"{self.path}:{self.name} {self.offset} {self.size}"


@dataclass(frozen=True)
class Clip:
    """One utterance before conversion.

    Attributes:
      id: unique within the set.
      audio: where its sound is.
      text: the transcript, as training will see it; '' where there is none.
      speaker: '' where unknown.
      language: two-letter code, or ''.
      split: the split it belongs to.
      translation: into English; '' where there is none.
    """

    id: str
    audio: Audio
    text: str
    speaker: str
    language: str
    split: str
    translation: str = ""


@dataclass(frozen=True)
class Dropped:
    """An item that a source or the conversion left out.

    Attributes:
      id: of the clip, or file and line where there is none.
      reason: short, the same for all items of its kind: reports count by it.
      is_bad: the data is at fault (missing, corrupt, duplicate), not merely unsuitable.
      detail: the whole message.
    """

    id: str
    reason: str
    is_bad: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Corpus:
    """A set of speech that `prepare` can convert.

    Attributes:
      name: of the prepared set, and of its folder.
      builder: the TFDS builder below `data_pipelines/datasets` that stores it.
      config: the builder's config, or '' for a builder without configs.
      licence: of audio and text.
      origin: packages with versions, or files; kept in the prepared set.
      items: yields the clips and what was left out.
      characters_per_second: clips whose text is outside this range do not match their audio and are dropped.
    """

    name: str
    builder: str
    config: str
    licence: str
    origin: dict[str, str]
    items: Callable[[], Iterator[Clip | Dropped]]
    characters_per_second: tuple[float, float] | None = None

    def unique_items(self) -> Iterator[Clip | Dropped]:
        """The items, of which a clip whose id came before is dropped. Holds some 100 bytes a clip in memory."""
        seen: set[bytes] = set()
        for item in self.items():
            if isinstance(item, Clip):
                if (digest := hashlib.blake2b(item.id.encode(), digest_size=16).digest()) in seen:
                    detail = (
                        f"{item.id}: this id occurs twice in {self.name}; the first is kept, give the second its own"
                    )
                    item = Dropped(item.id, "duplicate id", True, detail)
                else:
                    seen.add(digest)
            yield item
