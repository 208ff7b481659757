"""Multilingual LibriSpeech: `<split>/transcripts.txt`, `<split>/audio/<speaker>/<book>/<id>.flac` (or opus).

The folder's name, `mls_german` or `mls_german_opus`, states the language; `metainfo.txt` has the genders of speakers.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip
from data_pipelines.core.lines import text_lines
from data_pipelines.sources.listing import Items, SpeechFormat, inside, malformed, split_named

_LANGUAGE = re.compile(r"mls_([a-z]+)", re.IGNORECASE)


def files(path: Path) -> Iterator[Path]:
    """Yields the files of transcripts of the splits."""
    yield from sorted(path.glob("*/transcripts.txt"))


def matches(path: Path) -> bool:
    return path.is_dir() and any((file.parent / "audio").is_dir() for file in files(path))


def clips(path: Path) -> Items:
    """Yields the clips of one language."""
    match = _LANGUAGE.match(path.absolute().name)
    genders = _genders(path / "metainfo.txt")
    for transcripts in files(path):
        split, suffix = split_named(transcripts.parent.name), ""
        for number, line in text_lines(transcripts):
            if not line.strip():
                continue
            name, _, text = line.partition("\t")
            speaker, _, book = name.rpartition("_")[0].partition("_")
            try:
                if not book:
                    raise ValueError(f"expected speaker_book_number and a text after a tab, found {name[:80]!r}")
                audio = inside(transcripts.parent / "audio", f"{speaker}/{book}/{name}")
            except ValueError as error:
                yield malformed(transcripts, number, error)
                continue
            suffix = suffix or (".opus" if Path(f"{audio}.opus").is_file() else ".flac")
            gender = genders.get(speaker, "")
            yield Clip(name, AudioFile(audio + suffix), text, speaker, match[1] if match else "", split, gender=gender)


def _genders(metainfo: Path) -> dict[str, str]:
    if not metainfo.is_file():
        return {}
    rows = ([field.strip() for field in line.split("|")] for _, line in text_lines(metainfo))
    return {row[0]: row[1] for row in rows if len(row) > 1 and row[1] in ("M", "F")}


FORMAT = SpeechFormat("mls", "Multilingual LibriSpeech", matches, clips, files)
