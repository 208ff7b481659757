"""Clips in files of JSON lines, which workers on other machines read."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.audio.clips import AudioFile, AudioSlice, Clip
from data_pipelines.audio.command import Command
from data_pipelines.audio.parquet import ParquetAudio
from data_pipelines.audio.stretches import Stretch
from data_pipelines.sources.tfds_sets import TfdsAudio

_KINDS = {kind.__name__: kind for kind in (AudioFile, AudioSlice, Command, ParquetAudio, Stretch, TfdsAudio)}


def write_clips(path: Path, clips: Sequence[Clip]) -> None:
    """Writes clips to a file, as one JSON object per line."""
    rows = ({"clip": clip_fields(clip), "audio": _described(clip.audio)} for clip in clips)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def read_clips(path: Path) -> list[Clip]:
    """Reads the clips of a file that `write_clips` wrote."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Clip(audio=_audio(row["audio"]), **row["clip"]) for row in rows]


def clip_fields(clip: Clip) -> dict[str, str]:
    """Returns the fields of a clip, except its audio."""
    return {field.name: getattr(clip, field.name) for field in dataclasses.fields(clip) if field.name != "audio"}


def _described(audio: Any) -> dict[str, Any]:
    values = {field.name: getattr(audio, field.name) for field in dataclasses.fields(audio)}
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = str(value)
        elif dataclasses.is_dataclass(value):
            values[name] = _described(value)
    return values | {"kind": type(audio).__name__}


def _audio(values: dict[str, Any]) -> Any:
    kind = _KINDS[values.pop("kind")]
    paths = {field.name for field in dataclasses.fields(kind) if field.type is Path}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
        elif isinstance(value, dict):
            values[name] = _audio(value)
        elif name in paths:
            values[name] = Path(value)
    return kind(**values)
