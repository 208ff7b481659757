"""Names of the fields of manifests, here and in other tools, and unknown keys that must not be ignored."""

import functools
import re
from typing import Any

# By field: its name here and in other tools' manifests, in lower case without punctuation.
_NAMES = {
    "audio": (
        *("audio", "audiofilepath", "audiopath", "audiofile", "audiofilename", "path", "file", "filepath", "filename"),
        *("wav", "wavpath", "wavfile", "wavfilepath", "wavfilename"),
    ),
    "text": (
        *("text", "sentence", "transcription", "transcript"),
        *("normalizedtext", "normalisedtext", "textnormalized", "textnormalised"),
    ),
    "speaker": ("speaker", "speakerid", "clientid"),
    "language": ("language", "lang"),
    "translation": ("translation",),
    "age": ("age",),
    "gender": ("gender", "sex"),
    "accent": ("accent", "accents"),
    "intent": ("intent",),
    "slots": ("slots",),
    "id": ("id",),
    "split": ("split",),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration",),
    "channel": ("channel",),
    "channels": ("channels",),
}
_KNOWN = {name for names in _NAMES.values() for name in names}

_MOMENT = re.compile(
    r"(seg|segment|clip|audio|utt)?(start|begin|end|stop|offset|onset|from|until)"
    r"(time|at|s|sec|secs|seconds|ms|msec|sample|samples|frame|frames)?|to|t[01]|[tx](min|max)"
)
_SPAN = re.compile(r"segments?|interval|span|chunks?|slice|crop|trim|range|window")
_LIST = re.compile(r"timestamps?|tracks|supervisions?")
_CHANNEL = re.compile(r"(audio)?channel|side")
_ABOUT = {"id", "name", "count", "num", "n", "number", "index", "type", "date", "reason", "layout"}
_TRANSCRIPT = re.compile(
    r"(\w*)text|text(\w*)|txt|trans|transcri\w*|sentence\w*|utterance|captions?|words|orthograph\w*|lyrics|target|label"
)
_NO_TRANSCRIPT = _ABOUT | {"url", "language", "lang", "speaker", "format", "length", "len", "source"}


def present(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row without null and empty values."""
    return {
        key: value
        for key, value in row.items()
        if not (value is None or value == [] or (isinstance(value, str) and not value.strip()))
    }


def pick(row: dict[str, Any], field: str) -> tuple[str, Any]:
    """Finds a field under its own name, or under another tool's name for it.

    `start` and `offset` are synonyms with equal priority.

    Returns:
      The key and its value; the value is None if the field is absent.

    Raises:
      ValueError: several other names have different values.
    """
    if field in row and field != "start":
        return field, row[field]
    synonyms = _synonyms(tuple(row), field)
    if not synonyms:
        return field, None
    key = synonyms[0]
    for other in synonyms[1:]:
        if row[other] != row[key]:
            raise ValueError(f'"{key}" and "{other}" differ: keep one of them, as "{field}"')
    return key, row[key]


@functools.lru_cache(1024)  # the rows of a file have few sets of keys
def _synonyms(row_keys: tuple[str, ...], field: str) -> list[str]:
    return [key for key in row_keys if _plain(key) in _NAMES[field]]


def like_a_part(row: dict[str, Any]) -> str:
    """Returns an unknown key that seems to select a part of the file, or ''."""
    return next((key for key in _unknown(tuple(row)) if _is_part(key, row[key])), "")


@functools.lru_cache(1024)
def _unknown(row_keys: tuple[str, ...]) -> list[str]:
    return [key for key in row_keys if _plain(key) not in _KNOWN]


def _is_part(key: str, value: Any) -> bool:
    words = _words(key)
    is_word = isinstance(value, str) and not re.fullmatch(r"[\d.,:]+", value)
    if any(map(_CHANNEL.fullmatch, words)):
        return not isinstance(value, bool) and not _ABOUT.intersection(words) - (
            {"id", "index"} if not is_word else set()
        )
    if isinstance(value, bool) or is_word or _ABOUT.intersection(words):
        return False
    if any(map(_MOMENT.fullmatch, words)) or any(map(_SPAN.fullmatch, words)):
        return True
    return isinstance(value, list | dict) and any(map(_LIST.fullmatch, words))


def like_a_transcript(row: dict[str, Any]) -> str:
    """Returns an unknown key that seems to hold the transcript, or ''."""
    for key in _unknown(tuple(row)):
        words = _words(key)
        if not isinstance(row[key], str) or _NO_TRANSCRIPT.intersection(words):
            continue
        if any(map(_TRANSCRIPT.fullmatch, words)):
            return key
    return ""


def _plain(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())


@functools.lru_cache(1024)
def _words(key: str) -> list[str]:
    """Returns the words of a key such as start_time, startTime or start-time."""
    return re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key).lower())
