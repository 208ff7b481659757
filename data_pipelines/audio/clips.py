"""Clips and dropped items: the output of a corpus and the input of the prepare job."""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
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


class StoredFile(Protocol):
    """A sound file that is not a file on disk: within an archive, or the output of a command.

    Its `str` names it in errors, with the suffix of its format if the name has one.
    """

    def content(self) -> bytes:
        """Returns the bytes of the file. Raises `AudioError` if it cannot be read."""

    def fingerprint(self) -> str:
        """See `Audio`."""


class SharedAudio(Audio, Protocol):
    """Audio that shares a container (a long recording, a group of rows) with others, to be read in one pass."""

    @property
    def container(self) -> Hashable:
        """Equal for audio that `decode_together` may be given at once."""

    @staticmethod
    def decode_together(
        audio: Sequence["SharedAudio"], max_seconds: float, rate: int
    ) -> Iterator[tuple[int, NDArray[np.int16] | AudioError]]:
        """Yields pairs of an index into `audio` and its samples, or its error, in any order."""


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A sound file.

    Attributes:
      path: a string, since a `Path` takes five times the memory, and sets have millions of files.
      seconds: its stated length; another length is an error. None where no length is stated.
    """

    path: str
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


def file_stamp(path: str) -> str:
    """Returns a string that changes when a file does."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return f"{path} missing"
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def check_path(path: str) -> None:
    """Checks that a path can name a file and may be followed.

    Raises:
      AudioError: it cannot, or its permissions forbid it.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        pass  # the decoder's own error has the remedy
    except (OSError, ValueError) as error:
        shown = path if len(path) < 300 else f"{path[:300]}..."
        raise AudioError(shown, "cannot be opened", f"correct the path or its permissions ({error})") from error


def wrong_length(name: str, actual: float, stated: float | None) -> AudioError | None:
    """Returns the error for a file of `actual` seconds whose manifest states another length; None if they agree."""
    if stated is None or abs(actual - stated) <= tolerance(stated):
        return None
    remedy = (
        f'"duration" is {stated:g} s, but the file lasts {actual:.2f} s: remove the duration, or add "offset": 0 '
        "if the text belongs to a part of the file"
    )
    return AudioError(name, "duration contradicts the file", remedy)


def tolerance(seconds: float) -> float:
    """Returns the accepted error of a stated duration, in seconds: durations are rounded, and encoders pad."""
    return max(0.1, 0.01 * seconds)


@dataclass(frozen=True, slots=True)
class AudioSlice:
    """A sound file within an archive: `size` bytes from `offset`."""

    path: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    def content(self) -> bytes:
        """Reads the file. Raises `AudioError` if the archive does not have it."""
        try:
            with open(self.path, "rb") as archive:
                archive.seek(self.offset)
                content = archive.read(self.size)
        except OSError as error:
            raise AudioError(str(self), "cannot be opened", f"copy the archive again ({error.strerror})") from error
        if len(content) < self.size:
            raise AudioError(str(self), "truncated archive", "copy or download it again")
        return content

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        return decode(self.content(), name=str(self), rate=rate, max_seconds=max_seconds)

    def fingerprint(self) -> str:
        return f"{self} {self.offset} {self.size}"


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance before conversion.

    Attributes:
      id: unique within the set.
      text: the transcript in the form that training uses; '' where unknown.
      speaker: '' where unknown.
      language: two-letter code, or ''.
      split: '' in a listing that leaves it to the hash of the transcript.
      translation: into English; '' where unknown.
      age, gender, accent: of the speaker, as the source states them; '' where unknown.
      intent: what a spoken command asks for; '' where unknown.
      slots: its values by name, as `core.commands.write_slots` writes them; '' where unknown.
    """

    id: str
    audio: Audio
    text: str
    speaker: str
    language: str
    split: str
    translation: str = ""
    age: str = ""
    gender: str = ""
    accent: str = ""
    intent: str = ""
    slots: str = ""


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
