"""Hugging Face's audio folder: sound files and `metadata.csv` or `metadata.jsonl` with a column `file_name`.

The metadata is in the folder, or in folders below it, such as those of splits. Without metadata, every sound file is a
clip, with the text of a `.txt` file of the same name if there is one. Folders named train, validation or test are
splits.
"""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.audio.clips import AudioFile, Clip, Dropped
from data_pipelines.core.lines import MAX_LINE, csv_rows, parse_object, storable, too_long
from data_pipelines.sources import manifest
from data_pipelines.sources.listing import (
    AUDIO_SUFFIXES,
    Items,
    SpeechFormat,
    grouped_lines,
    inside,
    malformed,
    split_named,
    text_of,
)
from data_pipelines.text.normalize import SPLITS

_NAMES = ("metadata.jsonl", "metadata.csv")


def _metadata(path: Path) -> list[Path]:
    folders = (path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/")))
    files = (folder / name for folder in folders for name in _NAMES)
    return [file for file in files if file.is_file() and _has_file_names(file)]


def _has_file_names(metadata: Path) -> bool:
    with metadata.open("rb") as file:
        return b"file_name" in file.readline(MAX_LINE)


def has_metadata(path: Path) -> bool:
    return path.is_dir() and bool(_metadata(path))


def has_audio(path: Path) -> bool:
    return path.is_dir() and next(_sound_files(path), None) is not None


def listed(path: Path) -> Items:
    """Yields the clips of the metadata of a folder; their default ids are paths in the folder."""
    resolve = functools.partial(inside, path)
    for metadata in _metadata(path):
        folder = "" if metadata.parent == path else f"{metadata.parent.relative_to(path)}/"
        for number, row in _rows(metadata):
            try:
                if row is None:
                    raise ValueError(too_long())
                row = parse_object(row) if isinstance(row, bytes) else row
                name = folder + storable("file_name", row.get("file_name"))
                yield manifest.clip({"split": _split(name), **row, "file_name": name}, resolve)
            except ValueError as error:
                yield malformed(metadata, number, error)


def _rows(metadata: Path) -> Iterator[tuple[int, Any]]:
    if metadata.suffix == ".csv":
        yield from csv_rows(metadata)
    else:
        lines = grouped_lines(metadata, lambda line: None)
        yield from ((number, line) for number, _, line in lines if line is None or line.strip())


def _split(path: str) -> str:
    """Returns the usual split that a folder of a path is named after, or ''."""
    return next((split for name in path.split("/")[:-1] if (split := split_named(name)) in SPLITS), "")


def _sound_files(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not name.startswith("."):
                yield Path(folder, name)


def found(path: Path) -> Items:
    """Yields the sound files of a folder without metadata."""
    for file in _sound_files(path):
        name = str(file.relative_to(path))
        text = text_of(file.with_suffix(".txt"))
        if isinstance(text, Dropped):
            yield text
        else:
            yield Clip(re.sub(r"\.\w+$", "", name), AudioFile(str(file)), text, "", "", _split(name))


def _found_files(path: Path) -> Iterator[Path]:
    for file in _sound_files(path):
        yield file
        if (transcript := file.with_suffix(".txt")).is_file():
            yield transcript


FORMAT = SpeechFormat("audiofolder", "Hugging Face's audio folder with metadata", has_metadata, listed, _metadata)
FILES = SpeechFormat("files", "sound files, with texts in .txt files of the same name", has_audio, found, _found_files)
