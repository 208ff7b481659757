"""Mozilla Common Voice: `clips/` and lists of them in `train.tsv`, `dev.tsv`, `test.tsv`, `validated.tsv`, `other.tsv`.

The official train, dev and test splits are a part of the validated clips. The others are the split `validated`, and
clips without enough votes the split `other`; both may have speakers and sentences of the official splits. Without
official splits, validated clips are divided by the hash of the sentence.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip
from data_pipelines.core.errors import DataError
from data_pipelines.sources.listing import Items, SpeechFormat, inside, malformed, tsv_rows

_OFFICIAL = ("train", "dev", "test")


def _lists(path: Path) -> list[Path]:
    return [file for name in (*_OFFICIAL, "validated", "other") if (file := path / f"{name}.tsv").is_file()]


def matches(path: Path) -> bool:
    return (path / "clips").is_dir() and bool(_lists(path))


def clips(path: Path) -> Items:
    """Yields the clips of a language's folder."""
    if not (lists := _lists(path)):
        raise DataError(f"{path}: no validated.tsv; name the folder of one language, which has clips/ and *.tsv")
    is_divided = any(file.stem in _OFFICIAL for file in lists)
    seen: set[str] = set()
    for file in lists:
        split = "" if file.stem == "validated" and not is_divided else file.stem
        for number, row in tsv_rows(file):
            name = row.get("path", "")
            if file.stem == "validated" and name in seen:
                continue
            try:
                if not name or "sentence" not in row:
                    raise ValueError(f'expected the columns "path" and "sentence", found {", ".join(row)}')
                audio = inside(path / "clips", name if "." in name else f"{name}.mp3")
            except ValueError as error:
                yield malformed(file, number, error)
                continue
            if file.stem in _OFFICIAL:
                seen.add(name)
            accent = row.get("accents") or row.get("accent", "")
            yield Clip(
                id=name.rpartition(".")[0] or name,
                audio=AudioFile(audio),
                text=row["sentence"],
                speaker=row.get("client_id", ""),
                language=row.get("locale", ""),
                split=split,
                age=row.get("age", ""),
                gender=row.get("gender", ""),
                accent=accent,
            )


def files(path: Path) -> Iterator[Path]:
    yield from _lists(path)


FORMAT = SpeechFormat("common_voice", "a Common Voice folder", matches, clips, files)
