"""What a source of speech hands to preparation: clips, and what it left out."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.audio import AudioError, decode


class Audio(Protocol):
    """Where the sound of a clip is, and how to read it."""

    def decode(self, max_seconds: float) -> NDArray[np.int16]:
        """int16 [samples] at 16 kHz mono; see `data_pipelines.audio.decode`."""

    def fingerprint(self) -> str:
        """Changes when the stored sound changes, so that a resumed preparation knows what it can keep."""


@dataclass(frozen=True)
class AudioFile:
    """A sound file."""

    path: Path

    def decode(self, max_seconds: float) -> NDArray[np.int16]:
        return decode(self.path, max_seconds=max_seconds)

    def fingerprint(self) -> str:
        try:
            stat = self.path.stat()
        except OSError:
            return f"{self.path} missing"
        return f"{self.path} {stat.st_size} {stat.st_mtime_ns}"


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
class Source:
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
