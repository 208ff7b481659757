"""VCTK: `wav48_silence_trimmed/<speaker>/<id>_mic1.flac` (or `wav48/<speaker>/<id>.wav`) and `txt/<speaker>/<id>.txt`.

Of two microphones, the first is used, as two speakers lack the second. `speaker-info.txt` has ages, genders, accents.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip, Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from data_pipelines.sources.listing import Items, SpeechFormat, text_of

_AUDIO = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))


def _audio_folder(path: Path) -> tuple[Path, str] | None:
    """Returns the folder of audio and the suffix of its files."""
    return next(((path / name, suffix) for name, suffix in _AUDIO if (path / name).is_dir()), None)


def matches(path: Path) -> bool:
    return (path / "txt").is_dir() and _audio_folder(path) is not None


def clips(path: Path) -> Items:
    """Yields the clips of the corpus; a speaker whose transcripts are lost has clips without text."""
    about = _speakers(path / "speaker-info.txt")
    if (audio_folder := _audio_folder(path)) is None:
        raise DataError(f"{path}: no wav48_silence_trimmed/ and no wav48/; name the folder that has one, and txt/")
    folder, suffix = audio_folder
    for audio in sorted(folder.glob(f"*/*{suffix}")):
        speaker, name = audio.parent.name, audio.name.removesuffix(suffix)
        text = text_of(path / "txt" / speaker / f"{name}.txt")
        if isinstance(text, Dropped):
            yield text
            continue
        age, gender, accent = about.get(speaker.lstrip("p"), about.get(speaker, ("", "", "")))
        yield Clip(name, AudioFile(str(audio)), text, speaker, "en", "", age=age, gender=gender, accent=accent)


def _speakers(listing: Path) -> dict[str, tuple[str, str, str]]:
    """Returns age, gender and accent by speaker."""
    if not listing.is_file():
        return {}
    rows = [line.split() for _, line in text_lines(listing)]
    return {row[0]: (row[1], row[2], row[3]) for row in rows if len(row) > 3 and row[0] != "ID"}


def files(path: Path) -> Iterator[Path]:
    yield from sorted((path / "txt").glob("*/*.txt"))
    if (listing := path / "speaker-info.txt").is_file():
        yield listing


FORMAT = SpeechFormat("vctk", "VCTK", matches, clips, files)
