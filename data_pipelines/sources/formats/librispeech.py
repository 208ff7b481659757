"""LibriSpeech's tree: `<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt` beside FLAC files, and SPEAKERS.TXT.

Parts are splits, named as TFDS names them: `train-clean-100` is `train_clean100`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip
from data_pipelines.core.lines import text_lines
from data_pipelines.sources.listing import Items, SpeechFormat, inside, malformed, split_named

_GENDERS = re.compile(r"\s*(\d+)\s*\|\s*([MF])\s*\|")


def files(path: Path) -> Iterator[Path]:
    """Yields the files of transcripts, in order."""
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".trans.txt"))


def matches(path: Path) -> bool:
    return path.is_dir() and any(next(path.glob(f"{depth}*.trans.txt"), None) for depth in ("*/*/", "*/*/*/"))


def clips(path: Path) -> Items:
    """Yields the clips of the whole tree, or of one of its parts."""
    genders = _genders(path)
    for transcripts in files(path):
        folder = transcripts.parent
        parts = folder.relative_to(path).parts[:-2]
        split = split_named(re.sub(r"-(\d+)$", r"\1", parts[-1])) if parts else ""
        speaker = folder.parent.name
        for number, line in text_lines(transcripts):
            name, _, text = line.partition(" ")
            if not name:
                continue
            try:
                audio = inside(folder, f"{name}.flac")
            except ValueError as error:
                yield malformed(transcripts, number, error)
                continue
            yield Clip(name, AudioFile(audio), text, speaker, "en", split, gender=genders.get(speaker, ""))


def _genders(path: Path) -> dict[str, str]:
    """Returns M or F by speaker, from SPEAKERS.TXT in the folder or above it."""
    listing = next((file for folder in (path, path.parent) if (file := folder / "SPEAKERS.TXT").is_file()), None)
    matched = (_GENDERS.match(line) for _, line in text_lines(listing)) if listing else ()
    return {match[1]: match[2] for match in matched if match}


FORMAT = SpeechFormat("librispeech", "LibriSpeech's tree", matches, clips, files)
