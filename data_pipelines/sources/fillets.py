"""fillets-{cs,nl}: the acted dialogue of the puzzle game Fish Fillets NG, with English translations."""

import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip, Dropped
from data_pipelines.sources.spoken import spoken_clip

LICENCE = "GPL-2.0-or-later"
LANGUAGES = ("cs", "nl")
TEXT_PACKAGE = "fillets-ng-data"
_GAME = "usr/share/games/fillets-ng"
_STRING = r'"((?:[^"\\]|\\.)*)"'
_DIALOG = re.compile(rf"dialogId\(\s*{_STRING}\s*,\s*{_STRING}\s*,\s*{_STRING}\s*\)\s*dialogStr\(\s*{_STRING}\s*\)")


def audio_package(language: str) -> str:
    """Returns the name of the package with the voices of one language."""
    return f"fillets-ng-data-{language}"


def clips(language: str, text_root: Path, audio_root: Path) -> Iterator[Clip | Dropped]:
    """Yields the clips of one language.

    All lines of a level are in one split, because they answer each other. The font of a line identifies its speaker:
    `small` and `big` are the two fish.

    Args:
      text_root: folder of the unpacked package with the texts.
      audio_root: folder of the unpacked package with the audio.
    """
    texts: dict[tuple[str, str], tuple[str, str, str]] = {}
    for script in sorted((text_root / _GAME / "script").glob(f"*/dialogs_{language}.lua")):
        for match in _DIALOG.finditer(script.read_text("utf-8")):
            name, font, english, text = (re.sub(r"\\(.)", r"\1", field) for field in match.groups())
            texts[script.parent.name, name] = font.removeprefix("font_"), english, text
    for audio in sorted((audio_root / _GAME / "sound").glob(f"*/{language}/*.ogg")):
        level, name = audio.parts[-3], audio.stem
        clip_id = f"{level}/{name}"
        if (level, name) not in texts:
            yield Dropped(clip_id, "audio without transcript")
            continue
        speaker, english, text = texts[level, name]
        about = {"speaker": speaker, "translation": english, "numerals": False}
        yield spoken_clip(clip_id, AudioFile(str(audio)), text, language, level, **about)
