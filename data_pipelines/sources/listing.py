"""Listings of speech: what the parsers of manifests, data folders and corpora share.

A parser yields clips as their source lists them (texts unchanged, split '' where the source names none), and `Dropped`
for rows that are unusable. `finish` makes them the clips of a set.
"""

import contextlib
import gzip
import re
import sys
import tempfile
import unicodedata
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from data_pipelines.audio.clips import Clip, Dropped
from data_pipelines.audio.command import Command
from data_pipelines.core.lines import MAX_LINE, Line, byte_blocks, byte_lines, check_storable, parse_object, text_lines
from data_pipelines.text.normalize import normalise, normalised_split_key, split_key, split_of, usual_split
from data_pipelines.text.numbers import UnspeakableError
from data_pipelines.text.personal_data import scrub
from data_pipelines.text.spoken_form import spoken_form

Items = Iterator[Clip | Dropped]
TextForm = Literal["none", "basic", "spoken"]

AUDIO_SUFFIXES = frozenset((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".webm", ".aiff", ".sph"))
_SPLIT_NAME = re.compile(r"\w+", re.ASCII)
_GENDERS = {
    **dict.fromkeys(("m", "man", "masculine", "male_masculine"), "male"),
    **dict.fromkeys(("f", "woman", "feminine", "female_feminine"), "female"),
    **dict.fromkeys(("", "u", "unk", "unknown", "n/a", "na", "none", "do_not_wish_to_say"), ""),
}
_LANGUAGES = {
    **{"english": "en", "german": "de", "dutch": "nl", "french": "fr", "spanish": "es", "italian": "it"},
    **{"portuguese": "pt", "polish": "pl", "russian": "ru", "arabic": "ar", "hindi": "hi", "turkish": "tr"},
    **{"chinese": "zh", "mandarin": "zh", "japanese": "ja", "korean": "ko", "vietnamese": "vi"},
}


@dataclass(frozen=True)
class SpeechFormat:
    """A format in which people have speech: files that list it, or a tree of folders.

    Attributes:
      name: for `--format`.
      title: for messages and documentation.
      matches: whether a file or folder is of this format; looks at names and at most at one line.
      clips: yields what a file or folder lists, for `finish`.
      files: the files that decide the rows: if they change, the set is prepared again.
    """

    name: str
    title: str
    matches: Callable[[Path], bool]
    clips: Callable[[Path], Items]
    files: Callable[[Path], Iterable[Path]]


def finish(
    items: Items, text_form: TextForm, language: str = "", allow_commands: bool = False, scrubs: bool = False
) -> Items:
    """Makes listed clips the clips of a set: transcripts in the requested form, splits, usual names.

    The default split follows from the hash of the transcript (`text.normalize.split_of`), or of the id if it is empty.

    Args:
      language: of clips whose listing does not state it.
      scrubs: whether what identifies persons is replaced in transcripts and translations.
      allow_commands: whether audio may be the output of a command; otherwise such clips are dropped.
    """
    for item in items:
        if isinstance(item, Dropped):
            yield item
            continue
        source = getattr(item.audio, "source", item.audio)
        if isinstance(source, Command) and not allow_commands:
            detail = (
                f"{source}: {item.id} is the output of a command, `{source.command[:200]}`: --allow-commands runs it, "
                "if you trust the source; otherwise convert the audio to files"
            )
            yield Dropped(item.id, "command instead of audio", True, detail)
            continue
        clip_language = _LANGUAGES.get(item.language.lower(), item.language) or language
        try:
            text, key = transcript(item.text, clip_language, text_form, scrubs)
        except UnspeakableError as error:
            yield Dropped(item.id, "number or sign without spoken form", detail=f"{item.id}: {error}")
            continue
        gender = item.gender.strip().lower()
        yield Clip(
            item.id,
            item.audio,
            text,
            sys.intern(item.speaker),
            sys.intern(clip_language),
            sys.intern(usual_split(item.split) if item.split else split_of(key or item.id)),
            scrub(item.translation) if scrubs else item.translation,
            sys.intern(item.age),
            _GENDERS.get(gender, gender),
            sys.intern(item.accent),
            sys.intern(item.intent),
            sys.intern(item.slots),
        )


def transcript(text: str, language: str, text_form: TextForm, scrubs: bool = False) -> tuple[str, str]:
    """Converts a transcript to the requested form.

    Args:
      text_form: `none` keeps it as it is (Unicode NFC); `basic` applies `text.normalize.normalise`, and `spoken`
        `text.spoken_form.spoken_form`.
      scrubs: whether `text.personal_data.scrub` comes first.

    Returns:
      The transcript, and the key that decides its split.

    Raises:
      UnspeakableError: it has no such form.
    """
    if scrubs:
        text = scrub(text)
    if text_form == "basic":
        return normalise(text, language), normalised_split_key(text, language)
    text = unicodedata.normalize("NFC", text).strip()
    return spoken_form(text, language) if text_form == "spoken" else text, split_key(text)


def malformed(path: Path | str, number: int, error: Exception | str) -> Dropped:
    """Returns a line of a listing that cannot be used, as a bad item."""
    location = f"{path}:{number}"
    return Dropped(location, "malformed line", True, f"{location}: {error}; correct or remove the line")


def check_split(split: str) -> str:
    """Returns a split's name. Raises `ValueError` if it cannot be one."""
    if not _SPLIT_NAME.fullmatch(split):
        raise ValueError(f'"split" must be letters, digits and underscores, such as "train", found {split!r}')
    return split


def split_named(folder: str) -> str:
    """Returns the split that a folder or file name stands for: `train-clean-100` is `train_clean_100`."""
    return usual_split(re.sub(r"\W+", "_", folder, flags=re.ASCII).strip("_"))


def inside(folder: Path, name: str) -> str:
    """Returns the path of a file that a corpus names, below its folder.

    Raises:
      ValueError: the name leads out of the folder, or cannot be a path.
    """
    check_storable("path", name)
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{name[:200]!r} is no path below {folder}")
    return f"{folder}/{name}"


def base_folder(folder: Path, name: str) -> Path:
    """Returns the folder that relative paths of a listing refer to, found by one of them.

    Toolkits write paths relative to where they ran: the folder of the listing, one above it, or the working directory.
    """
    folder = folder.absolute()
    return next((base for base in (folder, *folder.parents, Path.cwd()) if (base / name).is_file()), folder)


def text_of(path: Path) -> str | Dropped:
    """Returns the text of a file of one transcript; '' if it does not exist."""
    try:
        return path.read_text("utf-8-sig").strip() if path.is_file() else ""
    except UnicodeDecodeError as error:
        detail = f"{path} is not UTF-8 (byte {error.start}): convert the file, for example with iconv"
        return Dropped(str(path), "wrong encoding", True, detail)


def tsv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a tab-separated file without quoting, by the names in its first line, with their numbers.

    Raises:
      DataError: as `text_lines`.
    """
    lines = text_lines(path)
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    for number, line in lines:
        if line.strip():
            yield number, dict(zip(names, line.split("\t"), strict=False))


def open_lines(path: Path) -> BinaryIO:
    """Opens a file of lines, which may be compressed by gzip."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


class Lookup:
    """Values by key of a listing, read as far as needed: if it is in the order of the keys, no memory is used."""

    def __init__(self, pairs: Iterator[tuple[str, Any]]):
        self._pairs = pairs
        self._passed: dict[str, Any] = {}

    def pop(self, key: str) -> Any:
        """Removes a key and returns its value; None if it is absent."""
        if key in self._passed:
            return self._passed.pop(key)
        for name, value in self._pairs:
            if name == key:
                return value
            self._passed[name] = value
        return None

    def rest(self) -> Iterator[str]:
        """Reads the listing to its end and yields the keys that were not popped."""
        yield from self._passed
        yield from (name for name, _ in self._pairs)


def without_dropped(items: Iterator[Any], wrong: list[Dropped]) -> Iterator[Any]:
    """Yields items without those that are dropped, which it appends to `wrong`."""
    for item in items:
        if isinstance(item, Dropped):
            wrong.append(item)
        else:
            yield item


def first_row(path: Path) -> dict[str, Any]:
    """Returns the JSON object in the first line of a file, or nothing if it is something else."""
    try:
        with open_lines(path) as file:
            return parse_object(next(byte_lines(byte_blocks(file))).content or b"")
    except (OSError, EOFError, ValueError, StopIteration, zlib.error):
        return {}


def grouped_lines(path: Path, container: Callable[[bytes], str | None], max_line: int = MAX_LINE) -> Iterator[Line]:
    """Yields the lines of a file so that those of one container follow each other, at the position of the first.

    The file is read twice, and 16 bytes of memory per line are used.

    Args:
      path: may be compressed by gzip; it is then unpacked to a temporary file if its order is another.
      container: returns the recording or archive that a line refers to, or None if its position does not matter.
    """
    first: dict[str, int] = {}  # by container, the number of its first line
    ranks, offsets = array("q"), array("q")
    with contextlib.ExitStack() as files:
        file = files.enter_context(open_lines(path))
        for number, offset, line in byte_lines(byte_blocks(file), max_line):
            name = container(line) if line is not None else None
            ranks.append(number if name is None else first.setdefault(name, number))
            offsets.append(offset)
        offsets.append(file.tell())
        file.seek(0)
        order = np.argsort(np.frombuffer(ranks, np.int64), kind="stable") if ranks else ()
        if np.array_equal(order, np.arange(len(ranks))):
            yield from byte_lines(byte_blocks(file), max_line)
            return
        if path.suffix == ".gz":
            unpacked = files.enter_context(tempfile.TemporaryFile())
            for block in byte_blocks(file):
                unpacked.write(block)
            file = unpacked
        for row in order:
            size = offsets[row + 1] - offsets[row]
            file.seek(offsets[row])
            yield Line(int(row) + 1, offsets[row], file.read(size) if size <= max_line else None)
