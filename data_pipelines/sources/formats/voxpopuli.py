"""VoxPopuli's transcribed speech: `asr_<split>.tsv`, as its `get_asr_data` writes them, and `<year>/<id>.ogg`."""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip
from data_pipelines.core.errors import DataError
from data_pipelines.sources.listing import Items, SpeechFormat, inside, malformed, tsv_rows


def files(path: Path) -> Iterator[Path]:
    """Yields the lists of the splits."""
    yield from sorted(path.glob("asr_*.tsv"))


def matches(path: Path) -> bool:
    return path.is_dir() and next(files(path), None) is not None


def clips(path: Path) -> Items:
    """Yields the clips of one language's folder, which is named after it, with their normalised texts."""
    if not matches(path):
        raise DataError(f"{path}: no asr_train.tsv; name the folder of one language, transcribed_data/<language>")
    language = path.absolute().name
    language = language if len(language) == 2 else ""
    for listing in files(path):
        split = listing.stem.removeprefix("asr_")
        for number, row in tsv_rows(listing):
            try:
                if not (name := row.get("id", "")) or not {"normalized_text", "raw_text"} & set(row):
                    raise ValueError(f'expected "id" and "normalized_text", found {", ".join(row)}')
                audio = inside(path / name[:4], f"{name}.ogg")
            except ValueError as error:
                yield malformed(listing, number, error)
                continue
            yield Clip(
                id=name,
                audio=AudioFile(audio),
                text=row.get("normalized_text") or row.get("raw_text", ""),
                speaker=row.get("speaker_id", ""),
                language=language,
                split=split,
                gender=row.get("gender", ""),
                accent="" if row.get("accent") in (None, "None") else row["accent"],
            )


FORMAT = SpeechFormat("voxpopuli", "VoxPopuli's transcribed speech", matches, clips, files)
