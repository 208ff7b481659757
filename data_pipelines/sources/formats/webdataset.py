"""WebDataset: tar files whose members with one name but for the suffix are a sample: audio, `.txt`, `.json`."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipelines.audio.clips import AudioSlice, Clip, Dropped
from data_pipelines.core.lines import MAX_LINE, parse_object, too_long
from data_pipelines.sources import manifest_keys as keys
from data_pipelines.sources.listing import AUDIO_SUFFIXES, Items, SpeechFormat, split_named
from data_pipelines.sources.manifest import labelled_clip
from data_pipelines.sources.tar_members import tar_members
from data_pipelines.text.normalize import SPLITS

_TEXTS = ("txt", "text", "transcript")


def _tars(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted((*path.glob("*.tar"), *path.glob("*/*.tar")))


def matches(path: Path) -> bool:
    return path.suffix == ".tar" if path.is_file() else bool(_tars(path))


def clips(path: Path) -> Items:
    """Yields the clips of tar files, whose names or folders may begin with a usual split: `train-000000.tar`."""
    for tar in _tars(path):
        names = (tar.name.partition(".")[0].split("-")[0].split("_")[0], tar.parent.name)
        usual = [split for name in names if (split := split_named(name)) in SPLITS] if path.is_dir() else []
        with tar.open("rb") as file:
            for item in _samples(tar):
                if isinstance(item, Dropped):
                    yield item
                    continue
                for name, members in _by_sound_file(*item):
                    try:
                        yield _clip(name, members, file, usual[0] if usual else "")
                    except ValueError as error:
                        detail = f"{tar}:{name}: {error}; correct or remove the sample"
                        yield Dropped(f"{tar.name}:{name}", "malformed sample", True, detail)


def _samples(tar: Path) -> Iterator[tuple[str, dict[str, AudioSlice]] | Dropped]:
    """Yields keys with members by lower-case suffix; the members of a sample follow each other."""
    last, members = None, {}
    for item in tar_members(tar):
        if isinstance(item, Dropped):
            yield item
            continue
        folder, slash, name = item.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        key = folder + slash + stem
        if key != last:
            if members:
                yield last, members
            last, members = key, {}
        members[suffix.lower()] = item
    if members:
        yield last, members


def _by_sound_file(key: str, members: dict[str, AudioSlice]) -> Iterator[tuple[str, dict[str, AudioSlice]]]:
    """Yields samples with one sound file: a name may have dots, though WebDataset's own ends at the first."""
    if sum(map(_is_audio, members)) < 2:
        yield key, {suffix.rpartition(".")[2]: member for suffix, member in members.items()}
        return
    by_stem: dict[str, dict[str, AudioSlice]] = {}
    for suffix, member in members.items():
        stem, _, last = suffix.rpartition(".")
        by_stem.setdefault(f"{key}.{stem}" if stem else key, {})[last] = member
    yield from by_stem.items()


def _is_audio(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in AUDIO_SUFFIXES


def _clip(key: str, members: dict[str, AudioSlice], file: BinaryIO, split: str) -> Clip:
    """Returns the clip of a sample. Raises `ValueError` if it has not one sound file, or wrong labels."""
    audio = [member for suffix, member in members.items() if _is_audio(suffix)]
    if len(audio) != 1:
        raise ValueError(f"expected one sound file, found {', '.join(members)}")
    row = keys.present(parse_object(_content(members["json"], file))) if "json" in members else {}
    if split and "split" not in row:
        row["split"] = split
    if text := next((members[suffix] for suffix in _TEXTS if suffix in members), None):
        row["text"] = _content(text, file).decode("utf-8-sig").strip()
    return labelled_clip(row, audio[0], key)


def _content(member: AudioSlice, file: BinaryIO) -> bytes:
    if member.size > MAX_LINE:
        raise ValueError(f"{member.name} is {too_long()}")
    file.seek(member.offset)
    return file.read(member.size)


FORMAT = SpeechFormat("webdataset", "WebDataset tar files", matches, clips, _tars)
