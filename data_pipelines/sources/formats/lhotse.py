"""Lhotse's manifests: cuts, recordings with supervisions, and Shar folders with audio in tar files.

A clip is a supervision: its stretch of the cut, which is a stretch of a recording. A cut without supervisions is a clip
without text. Cuts that mix several recordings, and recordings with augmentation, are left out and counted: audio is
augmented in training.
"""

import functools
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines.audio.clips import AudioFile, AudioSlice, Clip, Dropped, StoredFile
from data_pipelines.audio.command import Command
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import parse_object, too_long
from data_pipelines.sources.listing import (
    Items,
    Lookup,
    SpeechFormat,
    base_folder,
    first_row,
    grouped_lines,
    malformed,
    split_named,
    without_dropped,
)
from data_pipelines.sources.manifest import join, labelled_clip, seconds, stretch
from data_pipelines.sources.manifest_keys import present
from data_pipelines.sources.tar_members import tar_members
from data_pipelines.text.normalize import SPLITS

_LINES = re.compile(r"\.jsonl(\.gz)?$")
_KINDS = ("cuts", "recordings", "supervisions")
_MIXED, _AUGMENTED, _ELSEWHERE = "cut of several recordings", "augmented recording", "audio that is no file"

Locate = Callable[[dict[str, Any], str], tuple[str | StoredFile, dict[int, int]]]


class _UnsuitableError(Exception):
    """A cut that is not damaged, but cannot be used: (reason, remedy)."""


def _kind(path: Path) -> str:
    """Returns cuts, recordings or supervisions if a file is such a manifest, otherwise ''."""
    if not _LINES.search(path.name):
        return ""
    row = first_row(path)
    if row.get("type") in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "DataCut"):
        return "cuts"
    if "sources" in row and "sampling_rate" in row:
        return "recordings"
    return "supervisions" if "recording_id" in row and "start" in row else ""


def _manifests(path: Path) -> list[Path]:
    """Returns the manifests to read: of cuts if there are any, otherwise of supervisions, otherwise of recordings."""
    if path.is_file():
        partner = _partner(path, "supervisions") if _kind(path) == "recordings" else None
        return [partner or path]
    named = [file for file in sorted(path.glob("*.jsonl*")) if any(kind in file.name for kind in _KINDS)]
    by_kind = {kind: [file for file in named if kind in file.name and _kind(file) == kind] for kind in _KINDS}
    return by_kind["cuts"] or by_kind["supervisions"] or by_kind["recordings"]


def _partner(path: Path, kind: str) -> Path | None:
    """Returns the manifest of recordings or supervisions that belongs to one of the other kind, by its name."""
    other = "supervisions" if kind == "recordings" else "recordings"
    plain = path.name.replace(other, kind).removesuffix(".gz")
    candidates = (path.with_name(plain + suffix) for suffix in (".gz", ""))
    return next((file for file in candidates if file.name != path.name and file.is_file()), None)


def matches(path: Path) -> bool:
    return bool(_kind(path)) if path.is_file() else bool(_manifests(path))


def clips(path: Path) -> Items:
    """Yields the clips of a manifest, or of a folder of them, whose parts named train, dev or test are splits."""
    if not (manifests := _manifests(path)):
        raise DataError(f"{path}: no manifest of cuts, recordings or supervisions in .jsonl or .jsonl.gz")
    for listing in manifests:
        parts = _LINES.sub("", listing.name).split("_")
        split = split_named(parts[-1]) if len(manifests) > 1 else ""
        split = split if split in SPLITS else ""
        kind = _kind(listing)
        if kind == "supervisions":
            yield from _supervisions(listing, split)
        else:
            yield from _clips_of(listing, _recording_of_cut, _as_cut, _locator(listing), split)


def _locator(listing: Path) -> Locate:
    """Returns how the audio of a manifest's cuts is found: in a Shar folder, in a tar file."""
    if match := re.fullmatch(r"cuts\.(\d+)\.jsonl(\.gz)?", listing.name):
        tar = listing.with_name(f"recording.{match[1]}.tar")
        members = {item.name.rpartition(".")[0]: item for item in _audio_members(tar)} if tar.is_file() else {}
        return functools.partial(_in_tar, tar, members)
    return _on_disk(listing)


def _audio_members(tar: Path) -> Iterator[AudioSlice]:
    return (item for item in tar_members(tar) if isinstance(item, AudioSlice) and not item.name.endswith(".json"))


def _in_tar(
    tar: Path, members: dict[str, AudioSlice], cut: dict[str, Any], location: str
) -> tuple[AudioSlice, dict[int, int]]:
    del location
    if (member := members.get(str(cut.get("id")))) is None:
        raise ValueError(f"{tar} has no audio of the cut {str(cut.get('id'))[:200]!r}")
    sources = cut["recording"].get("sources") or [{}]
    return member, {channel: index for index, channel in enumerate(sources[0].get("channels", ()))}


def _on_disk(listing: Path) -> Locate:
    bases: list[str] = []

    def locate(cut: dict[str, Any], location: str) -> tuple[str | StoredFile, dict[int, int]]:
        recording = cut["recording"]
        transforms = [transform.get("name") for transform in recording.get("transforms") or ()]
        if changed := [name for name in transforms if name not in ("Resample", None)]:
            raise _UnsuitableError(_AUGMENTED, f"{changed[0]} is applied in training: list the original recordings")
        channels = _channels(cut)
        for source in recording["sources"]:
            own = source["channels"]
            if channels and not set(channels) <= set(own):
                continue
            kind, name = source["type"], source["source"]
            if not isinstance(name, str):
                raise ValueError(f'"source" must be a path or a command, found {str(name)[:80]!r}')
            bases or bases.append(str(base_folder(listing.parent, name)))
            indexes = {channel: index for index, channel in enumerate(own)}
            if kind == "command":
                return Command(name, bases[0], location), indexes
            if kind != "file":
                raise _UnsuitableError(_ELSEWHERE, f'a source of type "{kind}": save the cuts with their audio first')
            return join(bases[0], name), indexes
        raise ValueError(f"no source has the channels {channels}")

    return locate


def _channels(cut: dict[str, Any]) -> tuple[int, ...]:
    channels = cut.get("channel")
    channels = channels if isinstance(channels, list) else [] if channels is None else [channels]
    if any(not isinstance(channel, int) or isinstance(channel, bool) or channel < 0 for channel in channels):
        raise ValueError(f'"channel" must be numbers of channels, found {channels!r}')
    return tuple(channels)


def _clips_of(
    listing: Path,
    container: Callable[[bytes], str | None],
    as_cut: Callable[[dict[str, Any]], dict[str, Any]],
    locate: Locate,
    split: str,
) -> Items:
    """Yields the clips of the rows of a manifest, of which `as_cut` makes cuts."""
    for number, row in _rows(listing, container):
        if isinstance(row, Dropped):
            yield row
            continue
        try:
            yield from _cut_clips(as_cut(row), split, locate, f"{listing}:{number}")
        except _UnsuitableError as error:
            reason, remedy = error.args
            yield Dropped(str(row.get("id", "")), reason, detail=f"{listing}:{number}: {remedy}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield malformed(listing, number, _described(error))


def _described(error: Exception) -> Exception | str:
    if isinstance(error, KeyError):
        return f"no key {error}"
    return error if isinstance(error, ValueError) else f"not as lhotse writes it ({error})"


def _rows(listing: Path, container: Callable[[bytes], str | None]) -> Iterator[tuple[int, Any]]:
    for number, _, line in grouped_lines(listing, container):
        if line is None:
            yield number, malformed(listing, number, too_long())
        elif line.strip():
            try:
                yield number, parse_object(line)
            except ValueError as error:
                yield number, malformed(listing, number, error)


def _recording_of_cut(line: bytes) -> str | None:
    try:
        return str(parse_object(line)["recording"]["id"])
    except (ValueError, KeyError, TypeError):
        return None


def _as_cut(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a cut, or a recording as the cut of all of it."""
    if "sources" in row:
        return {"id": row["id"], "recording": row, "supervisions": []}
    if row.get("type") in ("MixedCut", "PaddingCut"):
        raise _UnsuitableError(_MIXED, "save the cuts with their audio first, or list the original ones")
    return row


def _cut_clips(cut: dict[str, Any], split: str, locate: Locate, location: str) -> Items:
    source, indexes = locate(cut, location)
    is_whole = "start" not in cut  # of a recording
    start = seconds("start", cut.get("start", 0.0))
    length = None if is_whole else seconds("duration", cut["duration"])
    supervisions = cut.get("supervisions") or []
    for supervision in supervisions:
        begin = float(supervision["start"])
        end = start + min(begin + seconds("duration", supervision["duration"]), length or float("inf"))
        channels = _channels(supervision) or _channels(cut)
        audio = _part(source, start + max(begin, 0.0), end, channels, indexes, cut)
        yield _labelled(supervision, audio, split)
    if not supervisions:
        end = None if length is None else start + length
        yield _labelled({"id": cut["id"]}, _part(source, start, end, _channels(cut), indexes, cut), split)


def _part(
    source: str | StoredFile,
    start: float,
    end: float | None,
    channels: tuple[int, ...],
    indexes: dict[int, int],
    cut: dict[str, Any],
) -> Any:
    """Returns a stretch of a recording, or all of it where it is so."""
    if unknown := [channel for channel in channels if channel not in indexes]:
        raise ValueError(f"the recording has no channel {unknown[0]}")
    chosen = tuple(indexes[channel] for channel in channels)
    if set(chosen) == set(indexes.values()):
        chosen = ()
    total = cut["recording"].get("duration")
    is_to_end = end is None or (isinstance(total, int | float) and abs(end - total) < 1e-3)
    if start == 0 and is_to_end and not chosen:
        return AudioFile(source) if isinstance(source, str) else source
    return stretch(source, start, end, chosen)


def _labelled(supervision: dict[str, Any], audio: Any, split: str) -> Clip:
    custom = supervision.get("custom") or {}
    row = {key: custom[key] for key in ("age", "accent", "translation") if isinstance(custom, dict) and key in custom}
    row |= {key: supervision.get(key) for key in ("id", "text", "speaker", "gender", "language")}
    if not row["id"]:
        raise ValueError('no "id"')
    return labelled_clip(present(row | {"split": split}), audio, "")


def _supervisions(listing: Path, split: str) -> Items:
    """Yields the clips of supervisions whose recordings are in another manifest."""
    partner = _partner(listing, "recordings")
    if partner is None:
        name = listing.name.replace("supervisions", "recordings")
        raise DataError(f"{listing}: its recordings are missing: put {name} next to it")
    wrong: list[Dropped] = []
    recordings = Lookup(without_dropped(_recordings(partner), wrong))
    last: list[Any] = [None, None]  # name and recording

    def as_cut(supervision: dict[str, Any]) -> dict[str, Any]:
        name = supervision["recording_id"]
        if name != last[0]:
            last[:] = name, recordings.pop(name)
        if last[1] is None:
            raise ValueError(f"{partner.name} has no recording {str(name)[:200]!r}")
        return {"recording": last[1], "supervisions": [supervision], "channel": supervision.get("channel")}

    yield from _clips_of(listing, _recording_of_supervision, as_cut, _on_disk(partner), split)
    deque(recordings.rest(), maxlen=0)  # reads the recordings to their end
    yield from wrong


def _recordings(listing: Path) -> Iterator[tuple[str, dict[str, Any]] | Dropped]:
    for number, row in _rows(listing, lambda line: None):
        if isinstance(row, Dropped):
            yield row
        elif not isinstance(row.get("id"), str) or not isinstance(row.get("sources"), list):
            yield malformed(listing, number, 'a recording needs an "id" and "sources"')
        else:
            yield row["id"], row


def _recording_of_supervision(line: bytes) -> str | None:
    try:
        return str(parse_object(line)["recording_id"])
    except (ValueError, KeyError):
        return None


def files(path: Path) -> Iterator[Path]:
    for listing in _manifests(path):
        yield listing
        if _kind(listing) == "supervisions" and (partner := _partner(listing, "recordings")) is not None:
            yield partner
    if path.is_dir():
        yield from sorted(path.glob("recording.*.tar"))


FORMAT = SpeechFormat("lhotse", "lhotse's manifests or Shar folder", matches, clips, files)
