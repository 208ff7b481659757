"""A user's own recordings, listed in a JSONL manifest.

One JSON object a line: `audio` (path, relative to the manifest) and optionally `text`, `id`, `speaker`, `language`,
`translation` and `split`. Other keys are ignored. Without a split, the hash rule of `text.split_of` decides by
transcript, or by id where there is none; without an id, the path is the id.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data_pipelines.clips import AudioFile, Clip, Dropped, Source
from data_pipelines.errors import DataError
from data_pipelines.numbers import UnspeakableError
from data_pipelines.text import normalise, normalised_split_key, split_key, split_of

TextForm = Literal["none", "basic"]
_SPLIT_NAME = re.compile(r"\w+", re.ASCII)
_STRINGS = ("text", "speaker", "language", "translation")


def manifest_source(manifest: Path, name: str, text_form: TextForm) -> Source:
    """Describes a manifest as a set called `name`.

    Args:
      text_form: `none` keeps transcripts as they are (Unicode NFC); `basic` applies `text.normalise`.

    Raises:
      DataError: there is no such file.
    """
    return Source(
        name=name,
        builder="manifest",
        config=name,
        licence="of the user's own data",
        origin={"manifest": str(manifest), "sha256": digest(manifest)},
        items=lambda: clips(manifest, text_form),
    )


def digest(manifest: Path) -> str:
    """SHA-256 of the manifest, so that a changed one is prepared again."""
    try:
        with manifest.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read ({error.strerror}): name an existing JSONL file.") from error


def clips(manifest: Path, text_form: TextForm) -> Iterator[Clip | Dropped]:
    """Clips of a manifest; lines that cannot be used come back as bad, named by file and line."""
    with manifest.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{manifest}:{number}"
            try:
                yield _clip(json.loads(line), manifest.parent, text_form)
            except UnspeakableError as error:
                yield Dropped(place, "number or sign without spoken form", detail=f"{place}: {error}")
            except ValueError as error:  # of json, of UTF-8, or of _clip
                yield Dropped(place, "malformed line", True, f"{place}: {error}; mend or remove the line")


def transcript(text: str, language: str, text_form: TextForm) -> tuple[str, str]:
    """A transcript in the form that was asked for, and the key that decides its split.

    Raises:
      UnspeakableError: it has no such form.
    """
    if text_form == "basic":
        return normalise(text, language), normalised_split_key(text, language)
    text = unicodedata.normalize("NFC", text).strip()
    return text, split_key(text)


def _clip(row: Any, folder: Path, text_form: TextForm) -> Clip:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    if not isinstance(row.get("audio"), str) or not row["audio"]:
        raise ValueError('"audio" must be the path of a file')
    fields = {key: row.get(key) for key in _STRINGS}
    for key, value in fields.items():
        if value is not None and not isinstance(value, str | int):
            raise ValueError(f'"{key}" must be a string, found {value!r}')
    text, speaker, language, translation = ("" if value is None else str(value) for value in fields.values())
    text, key = transcript(text, language, text_form)
    clip_id = str(row.get("id", row["audio"]))
    split = row.get("split") or split_of(key or clip_id)
    if not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split):
        raise ValueError(f'"split" must be letters, digits and underscores, such as "train", found {split!r}')
    return Clip(clip_id, AudioFile(folder / row["audio"]), text, speaker, language, split, translation)
