"""Speech in the formats that people have it in: the registry of formats, and the guess of a file's or folder's."""

import hashlib
import os
import sys
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa

from data_pipelines.audio.clips import Corpus
from data_pipelines.core.errors import DataError
from data_pipelines.core.files import file_sha256
from data_pipelines.sources import manifest
from data_pipelines.sources.formats import (
    aishell,
    audio_folder,
    audio_parquet,
    common_voice,
    kaldi,
    lhotse,
    librispeech,
    ljspeech,
    mls,
    nemo,
    vctk,
    voxpopuli,
    webdataset,
)
from data_pipelines.sources.listing import AUDIO_SUFFIXES, Items, SpeechFormat, TextForm, finish

_JSON_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_LISTS = ("", ".csv", ".gz", ".info", ".json", ".jsonl", ".scp", ".tsv", ".txt", ".TXT")  # others may be of any size


def _is_manifest(path: Path) -> bool:
    return path.is_file() and path.name.endswith(_JSON_LINES)


MANIFEST = SpeechFormat("manifest", "a JSONL manifest", _is_manifest, manifest.rows, lambda path: [path])

FORMATS = {
    # In the order of the guess: the first that matches.
    speech_format.name: speech_format
    for speech_format in (
        lhotse.FORMAT,
        nemo.FORMAT,
        kaldi.FORMAT,
        common_voice.FORMAT,
        ljspeech.FORMAT,
        vctk.FORMAT,
        aishell.FORMAT,
        mls.FORMAT,
        voxpopuli.FORMAT,
        librispeech.FORMAT,
        audio_folder.FORMAT,
        audio_parquet.FORMAT,
        webdataset.FORMAT,
        audio_folder.FILES,
        MANIFEST,
    )
}
NAMES = ("auto", *FORMATS)


def guess(path: Path) -> SpeechFormat:
    """Returns the format of a file or folder.

    Raises:
      DataError: it does not exist, or has no known format.
    """
    if not path.exists():
        raise DataError(f"{path}: cannot be read (No such file or directory): name an existing file or folder.")
    try:
        found = next((known for known in FORMATS.values() if known.matches(path)), None)
        within = _listing_within(path) if found is audio_folder.FILES else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}): correct its permissions, or give --format.") from error
    if within is not None:
        inner, known = within
        raise DataError(
            f"{path}: in it, {inner} is {known.title}: name that, or read all sound files by --format files"
        )
    if found is not None:
        return found
    if path.is_file():
        return MANIFEST  # of another suffix
    known = "; ".join(f"{known.name} ({known.title})" for known in FORMATS.values())
    raise DataError(f"{path}: the format is not known. Name the folder that has the lists, or give --format: {known}.")


def _listing_within(folder: Path) -> tuple[Path, SpeechFormat] | None:
    """Returns a file or folder directly in a folder that has another format than sound files, and its format."""
    for inner in sorted(inner for inner in folder.iterdir() if inner.suffix not in (*AUDIO_SUFFIXES, ".txt")):
        for known in FORMATS.values():
            if known is not audio_folder.FILES and known.matches(inner):
                return inner, known
    return None


def speech_format(path: Path, name: str) -> SpeechFormat:
    """Returns the format of a name, or for `auto` the guessed one, which it prints.

    Raises:
      DataError: as `guess`, or the name is unknown.
    """
    if name not in NAMES:
        raise DataError(f"--format {name}: not one of {', '.join(NAMES)}.")
    if name != "auto":
        if not path.exists():
            raise DataError(f"{path}: cannot be read (No such file or directory): name an existing file or folder.")
        return FORMATS[name]
    guessed = guess(path)
    if guessed is not MANIFEST:
        print(f"{path}: read as {guessed.title} (--format {guessed.name})", file=sys.stderr)
    return guessed


def digest(path: Path, known: SpeechFormat) -> str:
    """Returns a SHA-256 that changes when a file does that decides the rows, so that the set is prepared again.

    Raises:
      DataError: a file cannot be read.
    """
    try:
        if known is MANIFEST:
            return file_sha256(path)
        whole = hashlib.sha256()
        for file in known.files(path):
            status = file.stat()
            is_large = file.suffix not in _LISTS
            content = f"{status.st_size} {status.st_mtime_ns}" if is_large else file_sha256(file)
            whole.update(f"{os.path.relpath(file, path)} {content}\n".encode())
        return whole.hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): name a file or folder that can be.") from error


def speech_source(
    path: Path,
    name: str,
    known: SpeechFormat,
    text_form: TextForm,
    *,
    language: str = "",
    allow_commands: bool = False,
    scrubs: bool = False,
) -> Corpus:
    """Describes a file or folder of speech as a set called `name`.

    Args:
      text_form: of transcripts; see `listing.transcript`.
      language: of rows that state none.
      scrubs: whether what identifies persons is replaced in texts.
      allow_commands: whether to run the commands that a listing has in place of sound files.

    Returns:
      The set, whose clips are read when they are needed.

    Raises:
      DataError: a file cannot be read.
    """
    return Corpus(
        name=name,
        builder="manifest",
        config=name,
        licence="of the user's own data",
        origin={"manifest": str(path), "format": known.name, "sha256": digest(path, known)},
        items=lambda: _readable(finish(known.clips(path), text_form, language, allow_commands, scrubs), path, known),
    )


def _readable(items: Items, path: Path, known: SpeechFormat) -> Items:
    """Yields items. Raises `DataError` for a listing that is damaged or empty."""
    is_empty = True
    try:
        for item in items:
            is_empty = False
            yield item
    except (OSError, EOFError, zlib.error, tarfile.TarError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it may be damaged or cut short: copy it again") from error
    if is_empty:
        raise DataError(f"{path}: lists no clips as {known.title}; name its folder, or another --format")
