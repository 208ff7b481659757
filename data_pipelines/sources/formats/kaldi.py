"""Kaldi's and ESPnet's data folders: `wav.scp`, and optionally `segments`, `text`, `utt2spk`, `spk2gender`, `utt2lang`.

An entry of `wav.scp` is a path, a place in an archive (`data.ark:1234`), or a command that writes the audio (`sph2pipe
... |`), which runs only with `--allow-commands`. Commands that merely decode a file, as `flac -c -d -s x.flac |`, are
replaced by the file. Relative paths are looked for in the folder, the folders above it and the working directory.
"""

import re
import shlex
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import Audio, AudioFile, AudioSlice, Clip, Dropped, StoredFile
from data_pipelines.audio.command import Command
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import text_lines
from data_pipelines.sources.listing import (
    Items,
    Lookup,
    SpeechFormat,
    base_folder,
    grouped_lines,
    malformed,
    split_named,
    without_dropped,
)
from data_pipelines.sources.manifest import join, seconds, stretch

_ARCHIVE = re.compile(r"(.+):(\d+)")
_SHELL = re.compile(r"[$`;&<>|*?()\\]")
_DECODERS = {"cat": set(), "flac": {"-c", "-d", "-s", "-dc", "-cd", "-dcs", "-cds", "--silent", "--decode", "--stdout"}}
_LISTS = ("wav.scp", "segments", "text", "utt2spk", "spk2gender", "utt2lang")


def _folders(path: Path) -> list[Path]:
    """Returns the data folders: the given one, or those directly below it."""
    return [path] if (path / "wav.scp").is_file() else sorted(list_.parent for list_ in path.glob("*/wav.scp"))


def matches(path: Path) -> bool:
    return path.is_dir() and bool(_folders(path))


def clips(path: Path) -> Items:
    """Yields the clips of a data folder, or of all data folders below, whose names are then splits."""
    if not (folders := _folders(path)):
        raise DataError(f"{path}: no wav.scp; name the data folder, or the folder of data folders")
    for folder in folders:
        yield from _folder_clips(folder, "" if folder == path else split_named(folder.name))


def _folder_clips(folder: Path, split: str) -> Items:
    texts, speakers, languages = (Lookup(_column(folder / name)) for name in ("text", "utt2spk", "utt2lang"))
    genders = dict(_column(folder / "spk2gender"))
    segments = folder / "segments"
    for item in _segments(folder) if segments.exists() else _recordings(folder):
        if isinstance(item, Dropped):
            yield item
            continue
        name, audio = item
        text, speaker, language = (column.pop(name) or "" for column in (texts, speakers, languages))
        yield Clip(name, audio, text, speaker, language, split, gender=genders.get(speaker, ""))
    for name in texts.rest():
        yield Dropped(
            name, "transcript without audio", detail=f"{folder / 'text'}: {name} is not in wav.scp or segments"
        )


def _column(path: Path) -> Iterator[tuple[str, str]]:
    """Yields first word and rest of the lines of a list, which may be absent."""
    if path.exists():
        yield from ((key, value) for _, key, value in _pairs(path))


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields number, first word and rest of the lines of a list."""
    for number, line in text_lines(path):
        if words := line.split(maxsplit=1):
            yield number, words[0], words[1].strip() if len(words) > 1 else ""


def _recordings(folder: Path) -> Iterator[tuple[str, Audio] | Dropped]:
    """Yields names and audio of `wav.scp`; malformed lines are dropped."""
    for item in _sources(folder):
        if isinstance(item, Dropped):
            yield item
        else:
            name, source = item
            yield name, AudioFile(source) if isinstance(source, str) else source


def _sources(folder: Path) -> Iterator[tuple[str, str | StoredFile] | Dropped]:
    wav_scp, base = folder / "wav.scp", ""
    for number, name, entry in _pairs(wav_scp):
        command = entry.removesuffix("|").strip() if entry.endswith("|") else ""
        file = _decoded_file(command) if command else entry
        archive = None if file is None else _ARCHIVE.fullmatch(file)
        if file and not base:
            base = str(base_folder(folder, archive[1] if archive else file))
        try:
            if entry in ("", "|", "-"):
                raise ValueError("no path after the name")
            if file is None:
                yield name, Command(command, base or str(Path.cwd()), f"{wav_scp}:{number}")
            elif archive:
                yield name, _in_archive(join(base, archive[1]), int(archive[2]), name)
            else:
                yield name, join(base, file)
        except ValueError as error:
            yield malformed(wav_scp, number, error)


def _decoded_file(command: str) -> str | None:
    """Returns the file that a command decodes without any other change, or None."""
    if _SHELL.search(command):
        return None
    try:
        program, *words = shlex.split(command)
    except ValueError:
        return None
    options = {word for word in words if word.startswith("-")}
    paths = [word for word in words if not word.startswith("-")]
    if program == "sox" and words[1:] in (["-t", "wav", "-"], ["-t", "wav", "-", "-V1"]):
        return words[0]
    if program in _DECODERS and options <= _DECODERS[program] and len(paths) == 1:
        return paths[0]
    return None


def _in_archive(path: str, offset: int, name: str) -> AudioSlice:
    """Returns the sound file at an offset of an archive, as Kaldi or kaldiio writes it. Raises `ValueError`."""
    try:
        with open(path, "rb") as archive:
            archive.seek(offset)
            head = archive.read(16)
            if head[:4] == b"RIFF":
                return AudioSlice(path, f"{name}.wav", offset, 8 + int.from_bytes(head[4:8], "little"))
            if head[:5] == b"AUDIO" and 1 <= head[5] <= 8:  # kaldiio: number of bytes of the length, and the length
                width = head[5]
                size = int.from_bytes(head[6 : 6 + width], "little")
                return AudioSlice(path, name, offset + 6 + width, size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    raise ValueError(f"{path} has no sound file at byte {offset}, but {head[:5]!r}: list audio, not features")


def _segments(folder: Path) -> Iterator[tuple[str, Audio] | Dropped]:
    """Yields names and stretches of `segments`, recording by recording."""
    wrong: list[Dropped] = []
    sources = Lookup(without_dropped(_sources(folder), wrong))
    last_recording, source = None, None
    path = folder / "segments"
    for number, _, line in grouped_lines(path, _recording):
        try:
            fields = (line or b"").decode("utf-8-sig" if number == 1 else "utf-8").split()
            if not fields:
                continue
            if len(fields) not in (4, 5):
                raise ValueError(f"expected a name, a recording, start and end, found {len(fields)} fields")
            name, recording, start, end, *channel = fields
            if recording != last_recording:
                last_recording, source = recording, sources.pop(recording)
            if source is None:
                raise ValueError(f"wav.scp has no recording {recording[:200]!r}")
            last = None if end == "-1" else seconds("end", end)
            channels = tuple(int(number) for number in channel)
            yield name, stretch(source, seconds("start", start), last, channels)
        except ValueError as error:  # of UTF-8 too
            yield malformed(path, number, error)
    deque(sources.rest(), maxlen=0)  # reads wav.scp to its end
    yield from wrong


def _recording(line: bytes) -> str | None:
    fields = line.split(None, 2)
    return fields[1].decode(errors="replace") if len(fields) > 1 else None


def files(path: Path) -> Iterator[Path]:
    for folder in _folders(path):
        yield from (file for name in _LISTS if (file := folder / name).exists())


FORMAT = SpeechFormat("kaldi", "a Kaldi or ESPnet data folder", matches, clips, files)
