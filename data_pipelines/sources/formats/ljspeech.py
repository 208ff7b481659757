"""LJSpeech's layout, which many voices copy: `metadata.csv` (id|text|normalised text) and `wavs/<id>.wav`."""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip
from data_pipelines.core.lines import text_lines
from data_pipelines.sources.listing import Items, SpeechFormat, inside, malformed


def files(path: Path) -> Iterator[Path]:
    yield path / "metadata.csv"


def matches(path: Path) -> bool:
    return (path / "metadata.csv").is_file() and (path / "wavs").is_dir()


def clips(path: Path) -> Items:
    """Yields the clips, with their normalised texts where they have one. LJSpeech itself is in English."""
    metadata = path / "metadata.csv"
    language = "en" if path.absolute().name.lower().startswith("ljspeech") else ""
    for number, line in text_lines(metadata):
        if not line.strip():
            continue
        name, *texts = line.split("|")
        try:
            if not 1 <= len(texts) <= 2:
                raise ValueError(f"expected id|text or id|text|normalised text, found {len(texts) + 1} fields")
            audio = inside(path / "wavs", name if name.endswith(".wav") else f"{name}.wav")
        except ValueError as error:
            yield malformed(metadata, number, error)
            continue
        yield Clip(name.removesuffix(".wav"), AudioFile(audio), texts[-1] or texts[0], "", language, "")


FORMAT = SpeechFormat("ljspeech", "LJSpeech's layout", matches, clips, files)
