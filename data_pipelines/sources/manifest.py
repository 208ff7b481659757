"""A user's own recordings, listed in a JSONL manifest.

A line is a JSON object: `audio` (path, relative to the manifest) and optionally `text`, `id`, `speaker`, `language`,
`translation`, `age`, `gender`, `accent`, `intent`, `slots` (an object of values by name) and `split`; the names in
other tools' manifests, such as NeMo's, are accepted too. A row may be a stretch of its file, from `offset` (or
`start`) for `duration` seconds or to `end`, and one `channel`, counted from 0; `duration` alone is compared with the
file. A null or empty value counts as absent. Other keys are ignored, unless they seem to select a part of the file, or
to hold the text.

The default id is the path, and for stretches the path with their times.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.audio.clips import Audio, AudioFile, Clip, StoredFile, tolerance
from data_pipelines.audio.stretches import Stretch
from data_pipelines.core.commands import write_slots
from data_pipelines.core.lines import MAX_LINE, check_storable, parse_object, storable, too_long
from data_pipelines.sources import manifest_keys as keys
from data_pipelines.sources.listing import Items, check_split, grouped_lines, malformed

_STRINGS = ("text", "speaker", "language", "translation", "intent", "id", "split")
_ABOUT_SPEAKERS = ("age", "gender", "accent")
_PART = re.compile(rb"start|offset|end|channel", re.IGNORECASE)  # in every row that is a stretch

Resolve = Callable[[str], str | StoredFile]


def rows(manifest: Path, max_line: int = MAX_LINE) -> Items:
    """Yields the clips of a manifest as listed; an unusable line is a bad item, named by file and line.

    Stretches of one recording follow each other, at the position of the first, so that it can be read once.
    """
    folder = str(manifest.parent)
    yield from json_clips(manifest, lambda name: join(folder, name), _recording, max_line)


def json_clips(
    manifest: Path,
    resolve: Resolve,
    container: Callable[[bytes], str | None],
    max_line: int = MAX_LINE,
) -> Items:
    """Yields the clips of the JSON lines of a file, as listed.

    Args:
      resolve: returns the location of the audio that a row names; a `ValueError` makes it a bad item.
      container: as in `grouped_lines`.
    """
    for number, _, line in grouped_lines(manifest, container, max_line):
        if line is None:
            yield malformed(manifest, number, too_long(max_line))
        elif line.strip():
            try:
                yield clip(parse_object(line), resolve)
            except ValueError as error:  # of JSON, of UTF-8, or of clip
                yield malformed(manifest, number, error)


def join(folder: str, name: str) -> str:
    """Returns the path of a file in a folder; absolute names are kept."""
    return name if name.startswith("/") or folder == "." else f"{folder}/{name}"


def _recording(line: bytes) -> str | None:
    """Returns the file of which a row is a stretch, or None."""
    if not _PART.search(line):
        return None
    try:
        row = keys.present(parse_object(line))
        audio = _audio(row, audio_name(row))
    except ValueError:
        return None
    return str(audio.source) if isinstance(audio, Stretch) else None


def clip(row: dict[str, Any], resolve: Resolve) -> Clip:
    """Returns the clip of a row, as listed.

    Raises:
      ValueError: its keys or values are wrong.
    """
    row = keys.present(row)
    name = audio_name(row)
    audio = _audio(row, resolve(name))
    is_part = isinstance(audio, Stretch) and (audio.seconds is None or audio.channels)
    return labelled_clip(row, audio, f"{name}[{audio.span}]" if is_part else name)


def labelled_clip(row: dict[str, Any], audio: Any, default_id: str) -> Clip:
    """Returns the clip of a row that only labels its audio.

    Args:
      row: without null and empty values (`manifest_keys.present`).

    Raises:
      ValueError: a value is of a wrong type, or an unknown key seems to hold the text.
    """
    strings = {field: _string(row, field) for field in _STRINGS}
    if not strings["text"] and (unknown := keys.like_a_transcript(row)):
        raise ValueError(f'"{unknown}" looks like a transcript: call it "text", or remove it')
    if strings["split"]:
        check_split(strings["split"])
    about = {field: _about_speaker(row, field) for field in _ABOUT_SPEAKERS}
    return Clip(**(strings | {"id": strings["id"] or default_id}), audio=audio, slots=_slots(row), **about)


def _slots(row: dict[str, Any]) -> str:
    key, value = keys.pick(row, "slots")
    if value is None:
        return ""
    try:
        return storable(key, write_slots(value))
    except TypeError as error:
        raise ValueError(f'"{key}" {error}') from error


def _string(row: dict[str, Any], field: str) -> str:
    key, value = keys.pick(row, field)
    return "" if value is None else storable(key, value)


def _about_speaker(row: dict[str, Any], field: str) -> str:
    """Returns a value that is stored if it is a string or a number, and has no other use."""
    key, value = keys.pick(row, field)
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return ""
    check_storable(key, str(value))
    return str(value)


def audio_name(row: dict[str, Any]) -> str:
    """Returns the name of a row's audio. Raises `ValueError` if it has none."""
    key, name = keys.pick(row, "audio")
    if name is None:
        present_keys = ", ".join(f'"{field}"' for field in row) or "nothing"
        raise ValueError(f'"audio" must be the path of a file, found {present_keys}')
    if not isinstance(name, str):
        raise ValueError(f'"{key}" must be the path of a file, found {str(name)[:80]!r}')
    check_storable(key, name)
    return name


def _audio(row: dict[str, Any], source: str | StoredFile) -> Audio:
    """Returns the audio of a row that is in `source`. Raises `ValueError` if its keys are wrong."""
    if unknown := keys.like_a_part(row):
        raise ValueError(
            f'"{unknown}" looks as if the text belonged to a part of the file, and is not known: write "offset" and '
            '"duration", or "start" and "end", in seconds, and "channel", counted from 0'
        )
    start, end, duration = (_seconds(row, field) for field in ("start", "end", "duration"))
    channels = _channels(row)
    if start is None and end is None:
        if isinstance(source, str) and not channels:
            return AudioFile(source, duration)
        is_all = duration is None and not channels
        return source if is_all else Stretch(source, channels=channels, seconds=duration)
    start = start or 0.0
    if end is None and duration is not None:
        end = start + duration
    elif end is not None and duration is not None and abs(end - start - duration) > tolerance(duration):
        raise ValueError(f'"duration" {duration:g} contradicts the times {start:g} to {end:g}: remove the wrong one')
    return stretch(source, start, end, channels)


def stretch(source: str | StoredFile, start: float, end: float | None, channels: tuple[int, ...] = ()) -> Stretch:
    """Returns a stretch. Raises `ValueError` if it has no length."""
    if end is not None and end - start < 0.001:
        raise ValueError(f"the stretch from {start:g} to {end:g} s has no length: correct its times")
    return Stretch(source, start, end, channels)


def _seconds(row: dict[str, Any], field: str) -> float | None:
    key, value = keys.pick(row, field)
    return None if value is None else seconds(key, value)


def seconds(key: str, value: Any) -> float:
    """Returns a number of seconds, which may be written as a string.

    Raises:
      ValueError: it is not a number, negative, or not finite.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ValueError(f'"{key}" must be seconds, found {value!r}')
    return number


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
