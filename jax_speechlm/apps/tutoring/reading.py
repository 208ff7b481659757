"""A text that is read aloud: what became of each of its words, and how it was pronounced."""

import dataclasses
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import PHONES, Tokenizer
from jax_speechlm.decoding.ctc import goodness
from jax_speechlm.decoding.ctc.alignment import Span, force_align
from jax_speechlm.decoding.ctc.greedy import collapse
from jax_speechlm.evaluation.read_words import match_words, repetitions
from jax_speechlm.inference.asr.align import has_known_character, word_tokens
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Posteriors
from jax_speechlm.inference.segmentation import Recording

Verdict = Literal["correct", "substituted", "left out", "inserted", "repeated", "not judged"]


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """A token of a word: goodness of pronunciation by alignment and without, in nats; 0 is best."""

    token: str
    aligned: float
    free: float


@dataclasses.dataclass(frozen=True)
class ReadWord:
    """A word of the text, or one said in between.

    Attributes:
      word: as the text has it; "" of an inserted or repeated word.
      heard: as it was recognised; "" of a word left out.
      start, end: seconds; None of a word without a time.
      pause: seconds between the word before and this one, if they are at least `pause` of `read`, else 0.
      aligned, free: means over its tokens; None of a word without a time.
    """

    word: str = ""
    verdict: Verdict = "correct"
    heard: str = ""
    start: float | None = None
    end: float | None = None
    pause: float = 0.0
    aligned: float | None = None
    free: float | None = None
    tokens: tuple[TokenScore, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reading:
    """The words of a text as they were read, in order."""

    words: tuple[ReadWord, ...]

    def count(self, verdict: Verdict) -> int:
        return sum(word.verdict == verdict for word in self.words)

    @property
    def summary(self) -> dict[str, float | int | None]:
        """Counts by verdict, accuracy, pauses, and words of the text a minute from the first word to the last."""
        counts = {name: self.count(name) for name in get_args(Verdict)}
        judged = counts["correct"] + counts["substituted"] + counts["left out"]
        times = [(word.start, word.end) for word in self.words if word.start is not None and word.end is not None]
        seconds = times[-1][1] - times[0][0] if times else 0.0
        pauses = [word.pause for word in self.words if word.pause]
        return {
            **counts,
            "accuracy": round(counts["correct"] / judged, 4) if judged else None,
            "seconds": round(seconds, 3),
            "words a minute": round(60 * (judged - counts["left out"]) / seconds, 1) if seconds else 0.0,
            "correct words a minute": round(60 * counts["correct"] / seconds, 1) if seconds else 0.0,
            "pauses": len(pauses),
            "longest pause": round(max(pauses, default=0.0), 3),
        }


class ReadingTutor:
    """Compares readings with their texts, by a CTC recognizer.

    Args:
      pause: seconds between two words from which they are a pause.
      threshold: score without alignment, in nats per token, from which a word counts as correct though it was
        recognised otherwise. At the default, the text's tokens are as probable as all others together.

    Raises:
      DataError: the recognizer's tokens are phones, which are not compared with words.
    """

    def __init__(self, recognizer: Recognizer, pause: float = 0.5, threshold: float = float(np.log(0.5))):
        if recognizer.tokenizer.kind in PHONES:
            raise DataError(
                f"{recognizer.checkpoint}: recognises {recognizer.tokenizer.kind}, not letters: name a run whose "
                "tokens are characters or pieces of words"
            )
        self.recognizer, self.pause, self.threshold = recognizer, pause, threshold
        self._frame = recognizer.experiment.frame_samples / recognizer.experiment.sample_rate

    def read(self, text: str, recording: Recording) -> Reading:
        """Compares a recording with the text that it should be.

        Characters that the recognizer lacks are left out; a word without any other is not judged.

        Raises:
          DataError: no word of the text has a letter that the recognizer knows.
          AudioError: the recording cannot be read.
        """
        return self.compare(text, self.recognizer.frames_of(recording))

    def compare(self, text: str, log_probs: Posteriors) -> Reading:
        """Compares a text with the log-probabilities of the frames of its recording, as `read`."""
        tokenizer = self.recognizer.tokenizer
        words = text.split()
        forms = [spoken_form(tokenizer, word) for word in words]
        if not any(forms):
            raise DataError("the text is empty, or has no letter that the recognizer knows")
        (ids,) = collapse(log_probs.argmax(-1)[None])
        heard = self.forms(tokenizer.decode(ids))
        judged = [place for place, form in enumerate(forms) if form]
        keys, heard_keys = [_key(forms[place]) for place in judged], [_key(word) for word in heard]
        edits = match_words(keys, heard_keys)
        again = repetitions(keys, heard_keys, edits)
        said = [
            heard[theirs] if place is None else forms[judged[place]] for place, theirs in edits if theirs is not None
        ]
        scored = iter(self.score(log_probs, said))
        entries: list[ReadWord] = []
        for place, theirs in edits:
            word = "" if place is None else words[judged[place]]
            if place is not None:  # words before it that are not judged
                first = judged[place - 1] + 1 if place else 0
                entries += [ReadWord(each, "not judged") for each in words[first : judged[place]]]
            if theirs is None:
                entries.append(ReadWord(word, "left out"))
                continue
            entry = next(scored)
            if place is None:
                verdict = "repeated" if theirs in again else "inserted"
            elif keys[place] == heard_keys[theirs] or (entry.free is not None and entry.free >= self.threshold):
                verdict = "correct"
            else:
                verdict = "substituted"
            entries.append(dataclasses.replace(entry, word=word, heard=heard[theirs], verdict=verdict))
        entries += [ReadWord(each, "not judged") for each in words[judged[-1] + 1 :]]
        return Reading(tuple(self._with_pauses(entries)))

    def forms(self, text: str) -> list[str]:
        """Returns the words of a text as `spoken_form`, without those that have none."""
        return [form for word in text.split() if (form := spoken_form(self.recognizer.tokenizer, word))]

    def judge(self, log_probs: Posteriors, words: Sequence[str]) -> list[tuple[float, float, bool]] | None:
        """Returns both scores of every word and whether it is called correct; None if there are too few frames."""
        scored = self.score(log_probs, words)
        if any(word.free is None for word in scored):
            return None
        compared = [word for word in self.compare(" ".join(words), log_probs).words if word.word]
        return [(own.aligned, own.free, word.verdict == "correct") for own, word in zip(scored, compared, strict=True)]

    def score(self, log_probs: Posteriors, said: Sequence[str]) -> list[ReadWord]:
        """Returns times and scores of words, given in characters that the recognizer knows (`spoken_form`).

        They have none if there are too few frames for them.
        """
        tokenizer = self.recognizer.tokenizer
        labelled = word_tokens(tokenizer, " ".join(said))
        tokens = [token for token, _ in labelled]
        (spans,) = force_align([log_probs], [tokens])
        (free,) = goodness.without_alignment([log_probs], [tokens])
        if spans is None or free is None:
            return [ReadWord()] * len(said)
        parts: list[list[tuple[Span, TokenScore]]] = [[] for _ in said]
        aligned = goodness.by_alignment(log_probs, spans)
        for (token, word), span, *scores in zip(labelled, spans, aligned, free, strict=True):
            if word is not None:
                parts[word].append((span, TokenScore(tokenizer.pieces[token].replace("\u2581", ""), *scores)))
        return [
            ReadWord(
                start=round(own[0][0].start * self._frame, 3),
                end=round(own[-1][0].end * self._frame, 3),
                aligned=float(np.mean([score.aligned for _, score in own])),
                free=float(np.mean([score.free for _, score in own])),
                tokens=tuple(score for _, score in own),
            )
            for own in parts
        ]

    def _with_pauses(self, words: Sequence[ReadWord]) -> list[ReadWord]:
        before, result = None, []
        for word in words:
            gap = 0.0 if before is None or word.start is None else word.start - before
            result.append(dataclasses.replace(word, pause=round(gap, 3) if gap >= self.pause else 0.0))
            before = before if word.end is None else word.end
        return result


def spoken_form(tokenizer: Tokenizer, word: str) -> str:
    """Returns a word in characters that the tokenizer knows, in the case it knows; '' without a letter or a digit."""
    form = min((word, word.lower(), word.upper()), key=lambda each: len(tokenizer.unknown(each)))
    form = "".join(letter for letter in form if has_known_character(tokenizer, letter))
    return form if _key(form) else ""


def unknown_letters(tokenizer: Tokenizer, text: str) -> list[str]:
    """Returns the letters and digits of a text that the tokenizer lacks in either case."""
    lost = (set(_key(word)) - set(_key(spoken_form(tokenizer, word))) for word in text.split())
    return sorted(set().union(*lost))


def _key(word: str) -> str:
    """Returns what two words are compared by: letters, marks and digits, without case."""
    return "".join(each for each in word.casefold() if unicodedata.category(each)[0] in "LMN")


def read_text(path: Path) -> str:
    """Reads the text of a reading. Raises `DataError` if the file cannot be read, or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error
    if not text.strip():
        raise DataError(f"{path}: is empty; it must contain the text that is read aloud")
    return text
