"""Clips of corpora whose transcripts are stored in their spoken form."""

from data_pipelines.audio.clips import Audio, Clip, Dropped
from data_pipelines.text.normalize import normalise, split_of
from data_pipelines.text.numbers import UnspeakableError, check_no_numerals


def spoken_clip(
    clip_id: str,
    audio: Audio,
    text: str,
    language: str,
    key: str,
    *,
    speaker: str = "",
    translation: str = "",
    numerals: bool = True,
    without_words: str = "noise or remark without words",
) -> Clip | Dropped:
    """Returns a clip with the spoken form of its transcript, or why it has none.

    Args:
      key: decides the split.
      numerals: whether digits have a spoken form in this corpus.
      without_words: reason for a transcript without words.
    """
    try:
        if not numerals:
            check_no_numerals(text)
        words = normalise(text, language)
    except UnspeakableError as error:
        return Dropped(clip_id, "number or sign without spoken form", detail=str(error))
    if not words:
        return Dropped(clip_id, without_words)
    return Clip(clip_id, audio, words, speaker, language, split_of(key), translation)
