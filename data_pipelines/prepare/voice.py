"""Checks of transcripts against audio in a set for a voice, by the set's own rate of speech."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.audio.clips import Dropped
from data_pipelines.prepare.convert import Converted

_FEWEST = 20  # clips with text from which a rate of speech is known
_DEVIATIONS = 4.0  # accepted, in estimated standard deviations of the logarithm of the rate
_FACTORS = 1.5, 4.0  # the accepted deviation is at least and at most this
_SLACK = 0.2, 1.5  # seconds that a clip may be too short or too long: margins, and letters that are spelled
_LONG = 10  # letters; the rate of shorter texts, such as single letters, says little


class SpeechRate(NamedTuple):
    """Letters per second of a set, trimmed silence not counted: median and plausible range."""

    median: float
    slowest: float
    fastest: float


def speech_rate(items: Iterable[tuple[str, float]]) -> SpeechRate | None:
    """Estimates the rate of speech of a set, robustly: by the median, and the median deviation from it.

    Args:
      items: text and seconds of every clip; texts of ten letters and more decide if there are 20.

    Returns:
      The rate; None if fewer than 20 clips have a text.
    """
    lengths = [(number, seconds) for text, seconds in items if (number := num_letters(text))]
    long = [length for length in lengths if length[0] >= _LONG]
    chosen = long if len(long) >= _FEWEST else lengths
    if len(chosen) < _FEWEST:
        return None
    logarithms = np.log([number / seconds for number, seconds in chosen])
    median = float(np.median(logarithms))
    deviation = 1.4826 * float(np.median(np.abs(logarithms - median)))  # the standard deviation of a normal variable
    factor = min(max(math.exp(_DEVIATIONS * deviation), _FACTORS[0]), _FACTORS[1])
    return SpeechRate(math.exp(median), math.exp(median) / factor, math.exp(median) * factor)


def num_letters(text: str) -> int:
    """Returns the number of letters and digits of a text."""
    return sum(map(str.isalnum, text))


def misfit(item: Converted, rate: SpeechRate | None) -> Dropped | None:
    """Returns `Dropped` if a clip is too short or too long for its text; clips without text are not checked."""
    number = num_letters(item.clip.text)
    if rate is None or not number:
        return None
    shortest, longest = number / rate.fastest - _SLACK[0], number / rate.slowest + _SLACK[1]
    if shortest <= item.seconds <= longest:
        return None
    expected = f"expected {max(0.0, shortest):.1f} to {longest:.1f} s"
    detail = f"{item.clip.id}: {number} letters in {item.seconds:.1f} s, {expected}"
    return Dropped(item.clip.id, "text does not fit the set's rate of speech", detail=detail, seconds=item.seconds)


def without_misfits(converted: Sequence[Converted]) -> tuple[list[Converted], list[Dropped], SpeechRate | None]:
    """Drops clips whose text does not fit.

    Returns:
      The clips that remain, those dropped, and the set's rate of speech.
    """
    rate = speech_rate((item.clip.text, item.seconds) for item in converted)
    kept: list[Converted] = []
    dropped: list[Dropped] = []
    for item in converted:
        wrong = misfit(item, rate)
        kept.append(item) if wrong is None else dropped.append(wrong)
    return kept, dropped, rate
