"""A user's own recordings, listed in a JSONL manifest.

A line is a JSON object: `audio` (path, relative to the manifest) and optionally `text`, `id`, `speaker`, `language`,
`translation` and `split`; the names in other tools' manifests are accepted too. A row may be a stretch of its file,
from `offset` (or `start`) for `duration` seconds or to `end`, and one `channel`, counted from 0; `duration` alone is
compared with the file. A null or empty value counts as absent. Other keys are ignored, unless they seem to select a
part of the file, or to hold the text.

The default split follows from the hash of the transcript (`text.normalize.split_of`), or of the id if it is empty. The
default id is the path, and for stretches the path with their times.
"""

import math
import re
import unicodedata
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from data_pipelines.audio.clips import AudioFile, Clip, Corpus, Dropped, tolerance
from data_pipelines.audio.stretches import Stretch
from data_pipelines.core.errors import DataError
from data_pipelines.core.files import file_sha256
from data_pipelines.core.lines import (
    MAX_LINE,
    Line,
    byte_blocks,
    byte_lines,
    check_storable,
    parse_object,
    storable,
    too_long,
)
from data_pipelines.sources import manifest_keys as keys
from data_pipelines.text.normalize import normalise, normalised_split_key, split_key, split_of, usual_split
from data_pipelines.text.numbers import UnspeakableError
from data_pipelines.text.spoken_form import spoken_form

TextForm = Literal["none", "basic", "spoken"]
_SPLIT_NAME = re.compile(r"\w+", re.ASCII)
_STRINGS = ("text", "speaker", "language", "translation", "id", "split")


def manifest_source(manifest: Path, name: str, text_form: TextForm) -> Corpus:
    """Describes a manifest as a set called `name`.

    Args:
      text_form: `none` keeps transcripts as they are (Unicode NFC); `basic` applies `text.normalize.normalise`, and
        `spoken` `text.spoken_form.spoken_form`.

    Returns:
      The set, whose clips are read when they are needed.

    Raises:
      DataError: the file does not exist.
    """
    return Corpus(
        name=name,
        builder="manifest",
        config=name,
        licence="of the user's own data",
        origin={"manifest": str(manifest), "sha256": digest(manifest)},
        items=lambda: clips(manifest, text_form),
    )


def digest(manifest: Path) -> str:
    """Returns the SHA-256 of the manifest, so that a changed one is prepared again.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return file_sha256(manifest)
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read ({error.strerror}): name an existing JSONL file.") from error


def clips(manifest: Path, text_form: TextForm, max_line: int = MAX_LINE) -> Iterator[Clip | Dropped]:
    """Yields the clips of a manifest; an unusable line is a bad item, named by file and line.

    Stretches of one recording follow each other, at the position of the first, so that it can be read once.
    """
    with manifest.open("rb") as file:
        for number, _, line in _by_recording(file, max_line):
            location = f"{manifest}:{number}"
            if line is None:
                yield Dropped(location, "malformed line", True, f"{location}: {too_long(max_line)}")
                continue
            if not line.strip():
                continue
            try:
                yield _clip(parse_object(line), manifest.parent, text_form)
            except UnspeakableError as error:
                yield Dropped(location, "number or sign without spoken form", detail=f"{location}: {error}")
            except ValueError as error:  # of JSON, of UTF-8, or of _clip
                yield Dropped(location, "malformed line", True, f"{location}: {error}; correct or remove the line")


def _by_recording(file: BinaryIO, max_line: int) -> Iterator[Line]:
    """Yields the lines of a manifest, grouped by recording; uses 16 bytes of memory per line."""
    first: dict[str, int] = {}  # by recording, the number of its first stretch
    ranks, offsets = array("q"), array("q")
    for number, offset, line in byte_lines(byte_blocks(file), max_line):
        recording = _recording(line) if line is not None and b"{" in line else None
        ranks.append(number if recording is None else first.setdefault(recording, number))
        offsets.append(offset)
    offsets.append(file.tell())
    file.seek(0)
    order = np.argsort(np.frombuffer(ranks, np.int64), kind="stable") if ranks else ()
    if np.array_equal(order, np.arange(len(ranks))):
        yield from byte_lines(byte_blocks(file), max_line)
        return
    for row in order:
        size = offsets[row + 1] - offsets[row]
        file.seek(offsets[row])
        yield Line(int(row) + 1, offsets[row], file.read(size) if size <= max_line else None)


def _recording(line: bytes) -> str | None:
    """Returns the file of which a row is a stretch, or None."""
    try:
        audio = _audio(keys.present(parse_object(line)), Path())
    except ValueError:
        return None
    return str(audio.path) if isinstance(audio, Stretch) else None


def transcript(text: str, language: str, text_form: TextForm) -> tuple[str, str]:
    """Converts a transcript to the requested form.

    Returns:
      The transcript, and the key that decides its split.

    Raises:
      UnspeakableError: it has no such form.
    """
    if text_form == "basic":
        return normalise(text, language), normalised_split_key(text, language)
    text = unicodedata.normalize("NFC", text).strip()
    return spoken_form(text, language) if text_form == "spoken" else text, split_key(text)


def _clip(row: dict[str, Any], folder: Path, text_form: TextForm) -> Clip:
    row = keys.present(row)
    audio = _audio(row, folder)
    strings = {field: _string(row, field) for field in _STRINGS}
    text, language = strings["text"], strings["language"]
    if not text and (unknown := keys.like_a_transcript(row)):
        raise ValueError(f'"{unknown}" looks like a transcript: call it "text", or remove it')
    text, key = transcript(text, language, text_form)
    _, name = keys.pick(row, "audio")
    clip_id = strings["id"] or (f"{name}[{audio.span}]" if isinstance(audio, Stretch) else name)
    split = strings["split"] or split_of(key or clip_id)
    if not _SPLIT_NAME.fullmatch(split):
        raise ValueError(f'"split" must be letters, digits and underscores, such as "train", found {split!r}')
    return Clip(clip_id, audio, text, strings["speaker"], language, usual_split(split), strings["translation"])


def _string(row: dict[str, Any], field: str) -> str:
    key, value = keys.pick(row, field)
    return "" if value is None else storable(key, value)


def _audio(row: dict[str, Any], folder: Path) -> AudioFile | Stretch:
    """Returns the audio of a row, resolved against `folder`. Raises ValueError if its keys are wrong."""
    key, name = keys.pick(row, "audio")
    if name is None:
        present_keys = ", ".join(f'"{field}"' for field in row) or "nothing"
        raise ValueError(f'"audio" must be the path of a file, found {present_keys}')
    if not isinstance(name, str):
        raise ValueError(f'"{key}" must be the path of a file, found {str(name)[:80]!r}')
    check_storable(key, name)
    if unknown := keys.like_a_part(row):
        raise ValueError(
            f'"{unknown}" looks as if the text belonged to a part of the file, and is not known: write "offset" and '
            '"duration", or "start" and "end", in seconds, and "channel", counted from 0'
        )
    start, end, duration = (_seconds(row, field) for field in ("start", "end", "duration"))
    channels = _channels(row)
    if start is None and end is None:
        path = folder / name
        return Stretch(path, channels=channels, seconds=duration) if channels else AudioFile(path, duration)
    start = start or 0.0
    if end is None and duration is not None:
        end = start + duration
    elif end is not None and duration is not None and abs(end - start - duration) > tolerance(duration):
        raise ValueError(f'"duration" {duration:g} contradicts the times {start:g} to {end:g}: remove the wrong one')
    if end is not None and end - start < 0.001:
        raise ValueError(f"the stretch from {start:g} to {end:g} s has no length: correct its times")
    return Stretch(folder / name, start, end, channels)


def _seconds(row: dict[str, Any], field: str) -> float | None:
    key, value = keys.pick(row, field)
    if value is None:
        return None
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f'"{key}" must be seconds, found {value!r}')
    return seconds


def _channels(row: dict[str, Any]) -> tuple[int, ...]:
    """Returns the channels to average; empty for all."""
    key, value = keys.pick(row, "channel")
    if value is None:
        key, value = keys.pick(row, "channels")
        if value is not None and not isinstance(value, list):
            raise ValueError(f'"{key}" could be a number of channels or one of them: write "channel", or remove it')
    channels = value if isinstance(value, list) else [] if value is None else [value]
    try:
        channels = [int(channel) if isinstance(channel, str) else channel for channel in channels]
    except ValueError:
        channels = [-1]
    if any(not isinstance(channel, int) or isinstance(channel, bool) or channel < 0 for channel in channels):
        raise ValueError(f'"{key}" must be the number of a channel, counted from 0, found {value!r}')
    return tuple(channels)
