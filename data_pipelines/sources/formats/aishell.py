"""AISHELL-1: `wav/<split>/<speaker>/<id>.wav` and `transcript/aishell_transcript_v0.8.txt`.

Transcripts are stored as written Chinese, without the spaces between words that the corpus adds.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip, Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from data_pipelines.sources.listing import Items, SpeechFormat, split_named


def files(path: Path) -> Iterator[Path]:
    """Yields the transcripts, in the folder or in `data_aishell` below it, and the list of speakers."""
    yield from sorted((*path.glob("transcript/aishell_*.txt"), *path.glob("data_aishell/transcript/aishell_*.txt")))
    places = (path / "resource_aishell", path.parent / "resource_aishell")
    yield from (file for folder in places if (file := folder / "speaker.info").is_file())


def matches(path: Path) -> bool:
    return path.is_dir() and next(files(path), path).suffix == ".txt"


def clips(path: Path) -> Items:
    """Yields the clips; recordings without transcript, of which the corpus has some, are dropped."""
    if not matches(path):
        raise DataError(f"{path}: no transcript/aishell_transcript_v0.8.txt; name the folder data_aishell")
    transcripts, *speakers = files(path)
    rows = (line.split() for listing in speakers for _, line in text_lines(listing))
    genders = {row[0]: row[1] for row in rows if len(row) > 1}
    texts: dict[str, str] = {}
    for _, line in text_lines(transcripts):
        name, _, text = line.partition(" ")
        texts[name] = text.replace(" ", "")
    for audio in sorted(transcripts.parent.parent.glob("wav/*/*/*.wav")):
        name, speaker = audio.stem, audio.parent.name
        if name not in texts:
            yield Dropped(name, "audio without transcript")
            continue
        split = split_named(audio.parent.parent.name)
        gender = genders.get(speaker.lstrip("S"), "")
        yield Clip(name, AudioFile(str(audio)), texts[name], speaker, "zh", split, gender=gender)


FORMAT = SpeechFormat("aishell", "AISHELL-1", matches, clips, files)
