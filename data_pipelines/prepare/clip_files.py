"""Clips in files of JSON lines, which workers on other machines read."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.audio.clips import AudioFile, AudioSlice, Clip
from data_pipelines.audio.stretches import Stretch
from data_pipelines.sources.tfds_sets import TfdsAudio

_KINDS = {kind.__name__: kind for kind in (AudioFile, AudioSlice, Stretch, TfdsAudio)}


def write_clips(path: Path, clips: Sequence[Clip]) -> None:
    """Writes clips to a file, as one JSON object per line."""
    rows = (
        {"clip": clip_fields(clip), "kind": type(clip.audio).__name__, "audio": _fields(clip.audio)} for clip in clips
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def read_clips(path: Path) -> list[Clip]:
    """Reads the clips of a file that `write_clips` wrote."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Clip(audio=_audio(_KINDS[row["kind"]], row["audio"]), **row["clip"]) for row in rows]


def clip_fields(clip: Clip) -> dict[str, str]:
    """Returns the fields of a clip, except its audio."""
    return {field.name: getattr(clip, field.name) for field in dataclasses.fields(clip) if field.name != "audio"}


def _fields(audio: Any) -> dict[str, Any]:
    values = {field.name: getattr(audio, field.name) for field in dataclasses.fields(audio)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _audio(kind: type, values: dict[str, Any]) -> Any:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    paths = {field.name for field in dataclasses.fields(kind) if field.type is Path}
    return kind(**{name: Path(value) if name in paths else value for name, value in values.items()})
