"""Clips and dropped items: the output of a corpus and the input of the prepare job."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipelines.audio.decode import AudioError, decode
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE


class Audio(Protocol):
    """Location of a clip's audio, and how it is read."""

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        """Decodes the audio; see `data_pipelines.audio.decode.decode`.

        Returns:
          int16 [samples], mono, at `rate`.
        """

    def fingerprint(self) -> str:
        """Returns a string that changes when the stored audio changes: a resumed preparation reuses the rest."""


@dataclass(frozen=True)
class AudioFile:
    """A sound file.

    Attributes:
      seconds: its stated length; another length is an error. None where no length is stated.
    """

    path: Path
    seconds: float | None = None

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        check_path(self.path)
        samples = decode(self.path, rate=rate, max_seconds=max_seconds)
        if (wrong := wrong_length(self.path, len(samples) / rate, self.seconds)) is not None:
            raise wrong
        return samples

    def fingerprint(self) -> str:
        stamp = file_stamp(self.path)
        return stamp if self.seconds is None else f"{stamp} {self.seconds}"


def file_stamp(path: Path) -> str:
    """Returns a string that changes when a file does."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return f"{path} missing"
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def check_path(path: Path) -> None:
    """Checks that a path can name a file and may be followed.

    Raises:
      AudioError: it cannot, or its permissions forbid it.
    """
    try:
        path.stat()
    except FileNotFoundError:
        pass  # the decoder's own error has the remedy
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) < 300 else f"{str(path)[:300]}..."
        raise AudioError(shown, "cannot be opened", f"correct the path or its permissions ({error})") from error


def wrong_length(path: Path, actual: float, stated: float | None) -> AudioError | None:
    """Returns the error for a file of `actual` seconds whose manifest states another length; None if they agree."""
    if stated is None or abs(actual - stated) <= tolerance(stated):
        return None
    remedy = (
        f'"duration" is {stated:g} s, but the file lasts {actual:.2f} s: remove the duration, or add "offset": 0 '
        "if the text belongs to a part of the file"
    )
    return AudioError(str(path), "duration contradicts the file", remedy)


def tolerance(seconds: float) -> float:
    """Returns the accepted error of a stated duration, in seconds: durations are rounded, and encoders pad."""
    return max(0.1, 0.01 * seconds)


@dataclass(frozen=True)
class AudioSlice:
    """A sound file within an archive: `size` bytes from `offset`."""

    path: Path
    name: str
    offset: int
    size: int

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        with self.path.open("rb") as archive:
            archive.seek(self.offset)
            content = archive.read(self.size)
        if len(content) < self.size:
            raise AudioError(f"{self.path}:{self.name}", "truncated archive", "delete it and prepare again")
        return decode(content, name=f"{self.path}:{self.name}", rate=rate, max_seconds=max_seconds)

    def fingerprint(self) -> str:
        return f"{self.path}:{self.name} {self.offset} {self.size}"


@dataclass(frozen=True)
class Clip:
    """One utterance before conversion.

    Attributes:
      id: unique within the set.
      text: the transcript in the form that training uses; '' where unknown.
      speaker: '' where unknown.
      language: two-letter code, or ''.
      translation: into English; '' where unknown.
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
    """An item that a corpus or the conversion left out.

    Attributes:
      id: of the clip, or file and line where it has no id.
      reason: short, and the same for all items of its kind: reports count by it.
      is_bad: the data is at fault (missing, corrupt, duplicate), not merely unsuitable.
      seconds: of audio that was decoded before it was left out.
    """

    id: str
    reason: str
    is_bad: bool = False
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Corpus:
    """A set of speech that `prepare` can convert.

    Attributes:
      name: of the prepared set, and of its folder.
      builder: the TFDS builder of `data_pipelines/datasets/builders.py` that stores it.
      config: the builder's config, or '' for a builder without configs.
      licence: of audio and text.
      origin: packages with versions, or files; kept in the prepared set.
      items: yields clips and dropped items.
      characters_per_second: lowest and highest plausible rate; clips outside are dropped, as text and audio do not
        match.
    """

    name: str
    builder: str
    config: str
    licence: str
    origin: dict[str, str]
    items: Callable[[], Iterator[Clip | Dropped]]
    characters_per_second: tuple[float, float] | None = None

    def unique_items(self) -> Iterator[Clip | Dropped]:
        """Yields the items, with a clip whose id occurred before as `Dropped`; uses about 100 bytes of memory per
        clip.
        """
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
