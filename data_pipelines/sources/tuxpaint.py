"""tuxpaint-XX: volunteers who name the stamps of the drawing program Tux Paint, with English glosses;
tuxpaint-sounds.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip, Dropped
from data_pipelines.sources.spoken import spoken_clip
from data_pipelines.text.normalize import split_key, split_of

LICENCE = "GPL-2.0-or-later"
PACKAGE = "tuxpaint-stamps-default"
LANGUAGES = ("be", "bg", "ca", "da", "el", "en", "es", "fr", "nl", "ro", "ru")
_STAMPS = "usr/share/tuxpaint/stamps"


def clips(language: str, root: Path) -> Iterator[Clip | Dropped]:
    """Yields the clips of one language; English ones have no suffix and are their own gloss."""
    stamps = root / _STAMPS
    suffix = "_desc.ogg" if language == "en" else f"_desc_{language}.ogg"
    for audio in sorted(stamps.rglob(f"*{suffix}")):
        description = audio.with_name(audio.name.removesuffix(suffix) + ".txt")
        clip_id = str(audio.relative_to(stamps)).removesuffix(suffix)
        english, translations = read_description(description) if description.is_file() else ("", {})
        text = english if language == "en" else translations.get(language, "")
        about = {"translation": english, "numerals": False, "without_words": "audio without transcript"}
        yield spoken_clip(clip_id, AudioFile(str(audio)), text, language, split_key(english), **about)


def sounds(root: Path) -> Iterator[Clip]:
    """Yields the sounds of the stamps: no speech, for use as noise."""
    stamps = root / _STAMPS
    for audio in sorted(stamps.rglob("*.ogg")):
        if "_desc" not in audio.stem:
            clip_id = str(audio.relative_to(stamps).with_suffix(""))
            yield Clip(clip_id, AudioFile(str(audio)), "", "", "", split_of(split_key(clip_id)))


def read_description(path: Path) -> tuple[str, dict[str, str]]:
    """Reads a stamp's text file.

    Returns:
      Its English line, and translations by language code.
    """
    lines = path.read_text("utf-8", errors="replace").splitlines()
    translations = dict(match.groups() for line in lines[1:] if (match := re.match(r"([^.=]+)\.utf8=(.*)", line)))
    return lines[0].strip() if lines else "", translations
