"""NeMo's tarred data sets: a manifest whose rows name members of numbered tar files.

`convert_to_tarred_audio_dataset.py` writes `tarred_audio_manifest.json` and, for each shard, `audio_<shard>.tar` and
`sharded_manifests/manifest_<shard>.json`. Untarred manifests of NeMo are read as our own (`sources.manifest`).
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines.audio.clips import AudioSlice, Clip, Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import parse_object, too_long
from data_pipelines.sources import manifest
from data_pipelines.sources.listing import Items, SpeechFormat, first_row, grouped_lines, malformed
from data_pipelines.sources.tar_members import tar_members

_TAR = re.compile(r"audio[^/]*_(\d+)[^/]*\.tar")
_SHARD = re.compile(r"manifest[^/]*_(\d+)[^/]*\.jsonl?(\.gz)?")
_AGAIN = re.compile(r"-sub\d+(?=\.\w+$|$)")  # marks further rows of one member


def _manifests(path: Path) -> list[Path]:
    """Returns the manifests of a data set, given as its folder or as one of them."""
    if path.is_file():
        return [path]
    if whole := sorted(path.glob("tarred_audio_manifest*.json*")):
        return whole[:1]
    return sorted(path.glob("sharded_manifests/manifest_*.json*"), key=lambda shard: (len(shard.name), shard.name))


def _tars(path: Path) -> dict[str, Path]:
    """Returns the tar files of a data set by shard."""
    folder = path if path.is_dir() else path.parent
    folder = folder.parent if folder.name == "sharded_manifests" else folder
    return {match[1]: tar for tar in sorted(folder.glob("*.tar")) if (match := _TAR.fullmatch(tar.name))}


def matches(path: Path) -> bool:
    if path.is_dir():
        return bool(_manifests(path) and _tars(path))
    return first_row(path).get("shard_id") is not None or bool(
        path.parent.name == "sharded_manifests" and _SHARD.fullmatch(path.name)
    )


def clips(path: Path) -> Items:
    """Yields the clips of a data set, shard by shard."""
    if not (manifests := _manifests(path)):
        raise DataError(f"{path}: no tarred_audio_manifest.json and no sharded_manifests; name the folder that has one")
    tars = _tars(path)
    for listing in manifests:
        shard_of_file = match[1] if (match := _SHARD.fullmatch(listing.name)) else None
        yield from _listed(listing, tars, functools.partial(_shard, shard_of_file))


def _shard(of_file: str | None, row: dict[str, Any]) -> str:
    shard = row.get("shard_id", of_file)
    if shard is None or isinstance(shard, bool) or not isinstance(shard, int | str):
        raise ValueError(f'"shard_id" must be the number of a tar file, found {shard!r}')
    return str(shard)


def _listed(listing: Path, tars: dict[str, Path], shard_of: Callable[[dict[str, Any]], str]) -> Items:
    current, members, clips = None, {}, []

    def shard_key(line: bytes) -> str | None:
        try:
            return shard_of(parse_object(line))
        except ValueError:
            return None

    for number, _, line in grouped_lines(listing, shard_key):
        if line is None:
            yield malformed(listing, number, too_long())
            continue
        if not line.strip():
            continue
        try:
            row = parse_object(line)
            shard = shard_of(row)
            if shard != current:
                if shard not in tars:
                    raise ValueError(f"no audio_{shard}.tar is next to the manifest")
                yield from _by_member(clips)
                current, members, clips = shard, {}, []
                for item in tar_members(tars[shard]):
                    if isinstance(item, Dropped):
                        yield item
                    else:
                        members[item.name] = item
            clips.append(manifest.clip(row, functools.partial(_member, members, tars[shard])))
        except ValueError as error:
            yield malformed(listing, number, error)
    yield from _by_member(clips)


def _by_member(clips: list[Clip]) -> list[Clip]:
    """Returns the clips of a shard so that stretches of one member follow each other: it is then decoded once."""
    first: dict[Any, int] = {}
    return sorted(clips, key=lambda clip: first.setdefault(getattr(clip.audio, "container", clip.id), len(first)))


def _member(members: dict[str, AudioSlice], tar: Path, name: str) -> AudioSlice:
    member = members.get(name) or members.get(_AGAIN.sub("", name))
    if member is None:
        raise ValueError(f"{tar} has no member {name[:200]!r}")
    return member


def files(path: Path) -> Iterator[Path]:
    yield from _manifests(path)
    yield from _tars(path).values()


FORMAT = SpeechFormat("nemo", "NeMo's tarred data set", matches, clips, files)
