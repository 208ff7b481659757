"""asterisk-{en,es,fr,it,ru}: telephone prompts read in a studio, 16 kHz, one voice per language."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.audio.clips import AudioFile, Clip, Dropped
from data_pipelines.sources.spoken import spoken_clip
from data_pipelines.text.normalize import split_key

LICENCES = {"en": "CC-BY-SA-3.0", "es": "CC-BY-SA-3.0", "fr": "CC-BY-SA-3.0", "it": "CC-BY-3.0", "ru": "CC-BY-3.0"}
_ENTRY = re.compile(r"(?P<key>[\w./-]+):\s*(?P<text>.*)")


def packages(language: str) -> tuple[str, str]:
    """Returns the names of the packages with the transcripts and with the audio."""
    return f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-g722"


def clips(language: str, text_root: Path, audio_root: Path) -> Iterator[Clip | Dropped]:
    """Yields the clips of one language.

    The speaker is the voice after which the audio folder is named.

    Args:
      text_root: folder of the unpacked package with the transcripts.
      audio_root: folder of the unpacked package with the audio.
    """
    (transcripts,) = text_root.glob(f"usr/share/doc/*/core-sounds-{language}.txt.gz")
    (voice,) = (audio_root / "usr/share/asterisk/sounds").iterdir()
    seen = set()
    for line in gzip.decompress(transcripts.read_bytes()).decode("utf-8-sig").splitlines():
        if not (entry := _ENTRY.fullmatch(line.strip())):
            continue  # comments start with ';'
        key, text = entry["key"], entry["text"]
        path = voice / f"{key}.g722"
        if key in seen:
            continue
        seen.add(key)
        if not path.is_file():
            yield Dropped(key, "transcript without audio")
        elif key.startswith("silence/"):
            yield Dropped(key, "silence")
        elif "[" in text:  # tones, symbols as signs, and words that may or may not be spoken
            yield Dropped(key, "text in square brackets")
        else:
            reason = "remark without words"
            yield spoken_clip(
                key, AudioFile(str(path)), text, language, split_key(text), speaker=voice.name, without_words=reason
            )
