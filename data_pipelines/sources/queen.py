"""queen-en: the English dialogue of the 1995 adventure game Flight of the Amazon Queen, about 30 acted characters.

One archive contains 11.025 kHz mp3 clips and the game's texts. A text is a chain of spoken segments, each ended by an
animation command that starts with `*`; each segment has its own clip, named after its position in the texts.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.audio.clips import AudioSlice, Clip, Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.sources.spoken import spoken_clip
from data_pipelines.text.normalize import split_key

LICENCE = (
    "Flight of the Amazon Queen licence: free to pass on and to change with its notice, not to be sold by itself; "
    "this is a modified version"
)
PACKAGE = "flight-of-the-amazon-queen"
_ARCHIVE = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"

_COMMAND = re.compile(r"\*(?:XY.{11}|..)")  # `*XY00(237,112)` walks to a point, `*14` or `*WT` make a gesture
_SCORE = re.compile(r"@@|\^_")  # musical notes and the trade mark sign, in the game's font
_HEADER_BYTES = 20  # before the contents of a DOG or CUT file
_FIRST_RESPONSE = 1187  # the line of QUEEN2.JAS, from 0, where Joe's 40 answers to impossible commands begin
_RESPONSES = 40


@dataclass(frozen=True)
class Segment:
    """One spoken segment.

    Attributes:
      text: as the game displays it.
      speaker: '' where unknown.
    """

    clip: str
    text: str
    speaker: str


def clips(root: Path) -> Iterator[Clip | Dropped]:
    """Yields the clips of the unpacked package.

    Speakers are named after the dialogue files, and all of Joe's lines have the speaker `joe`; speakers of cut-scenes
    are unknown.
    """
    path = root / _ARCHIVE
    archive = path.read_bytes()
    entries = read_table(archive, path)
    texts: dict[str, Segment | None] = {}
    for segment in segments(archive, entries):
        if segment.clip in entries and segment.text.strip():
            # Three clips have two different texts; only one can be right, so neither is used.
            known = texts.setdefault(segment.clip, segment)
            if known is not None and known.text.strip() != segment.text.strip():
                texts[segment.clip] = None
    for name, (offset, size) in entries.items():
        if not name.endswith(".SB") or "SSSS" in name:  # the game's placeholders for silence
            continue
        clip_id = name.removesuffix(".SB")
        if name not in texts:
            yield Dropped(clip_id, "audio without transcript")
        elif (segment := texts[name]) is None:
            yield Dropped(clip_id, "two transcripts for one clip")
        else:
            audio, text = AudioSlice(str(path), name, offset, size), _SCORE.sub("", segment.text)
            yield spoken_clip(clip_id, audio, text, "en", split_key(segment.text), speaker=segment.speaker)


def read_table(archive: bytes, path: Path) -> dict[str, tuple[int, int]]:
    """Reads the archive's table of files.

    Returns:
      Offset and size of each file, by name.

    Raises:
      DataError: this is not the archive's format.
    """
    if archive[:4] != b"QTBL":
        raise DataError(f"{path}: not a QTBL archive; delete its folder and prepare again.")
    (count,) = struct.unpack_from(">H", archive, 13)
    rows = (struct.unpack_from(">12sBII", archive, 15 + 21 * row) for row in range(count))
    return {name.rstrip(b"\0").decode("ascii"): (offset, size) for name, _, offset, size in rows}


def segments(archive: bytes, entries: dict[str, tuple[int, int]]) -> Iterator[Segment]:
    """Yields every spoken segment of the game's texts, whether or not a clip of that name exists."""
    for name, (offset, size) in entries.items():
        content = archive[offset : offset + size]
        stem = name.partition(".")[0]
        if name.endswith(".DOG"):
            yield from _dialogue(content[_HEADER_BYTES:], stem.rstrip("0123456789").lower())
        elif name.endswith(".CUT"):
            yield from _cut_scene(content[_HEADER_BYTES:], stem)
        elif name == "QUEEN2.JAS":
            yield from _remarks(content.decode("latin-1").split("\r\n"))


def _dialogue(content: bytes, person: str) -> Iterator[Segment]:
    (levels, _, talk_key, joe_count, person_count) = struct.unpack_from(">5h", content, 0)
    person_at, _, again_at = struct.unpack_from(">3H", content, 22)
    for at, count, suffix, speaker in (
        (32 + 96 * abs(levels), joe_count, "J", "joe"),
        (person_at, person_count, "P", person),
    ):
        for _ in range(count):
            (index,) = struct.unpack_from(">H", content, at + 2)
            text, at = _string(content, at + 4, align=4)
            yield from _split(f"{talk_key:02d}{index:04X}{suffix}", text, speaker)
    # The lines of both when they meet again.
    text, again_at = _string(content, again_at, align=2)
    yield from _split(f"{talk_key:02d}XXXXP", text, person)
    text, _ = _string(content, again_at, align=2)
    yield from _split(f"{talk_key:02d}XXXXJ", text, "joe")


def _cut_scene(content: bytes, scene: str) -> Iterator[Segment]:
    (objects,) = struct.unpack_from(">h", content, 2)
    (at,) = struct.unpack_from(">H", content, 8)
    _, at = _string(content, at, align=2)  # the direction in which Joe faces
    for index in range(1, abs(objects) + 1):
        text, at = _string(content, at, align=2)
        if not text.startswith("#"):  # the name of a roll of credits
            yield from _split(f"{scene:_<5}{index:02d}", text, "")


def _remarks(lines: list[str]) -> Iterator[Segment]:
    for number, line in enumerate(lines[:_FIRST_RESPONSE], start=1):
        yield from _split(f"JOE{40 + number:04d}", line, "joe")
    for number, line in enumerate(lines[_FIRST_RESPONSE : _FIRST_RESPONSE + _RESPONSES], start=1):
        yield from _split(f"JOE{number:04d}", line, "joe")


def _split(prefix: str, text: str, speaker: str) -> Iterator[Segment]:
    for number, segment in enumerate(_COMMAND.split(text), start=1):
        yield Segment(f"{prefix}{number:X}.SB", segment, speaker)


def _string(content: bytes, at: int, align: int) -> tuple[str, int]:
    """Reads a length byte and that number of Latin-1 characters.

    Returns:
      The text and the offset of the next field; after a text that is not empty, it is a multiple of `align`.
    """
    end = at + 1 + content[at]
    text = content[at + 1 : end].decode("latin-1")
    return text, -(-end // align) * align if text else end
