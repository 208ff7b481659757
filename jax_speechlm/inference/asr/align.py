"""Word times of known transcripts, by forced alignment with a CTC recognizer."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.decoding.ctc import alignment
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Posteriors

_ROWS = 16  # aligned in lockstep
UNKNOWN = "\ufffd"
"""Label of characters that the recognizer does not know."""


def align_utterances(
    recognizer: Recognizer, utterances: Sequence[tuple[str, str, float, Posteriors]], *, by_character: bool = True
) -> tuple[list[alignment.AlignedUtterance], list[str]]:
    """Aligns utterances, each (id, transcript, seconds, log probabilities), in order.

    Words are those of the transcript. Characters unknown to the recognizer match any sound.

    Args:
      by_character: whether words in scripts without spaces are split into characters.

    Returns:
      The aligned utterances, and a message for each that could not be aligned.
    """
    tokenizer, frame = recognizer.tokenizer, recognizer.experiment.frame_samples / recognizer.experiment.sample_rate
    pieces = (*tokenizer.pieces, UNKNOWN)
    labelled = [word_tokens(tokenizer, text) for _, text, _, _ in utterances]
    tokens = [[token for token, _ in pairs] for pairs in labelled]
    order = sorted(range(len(utterances)), key=lambda row: len(utterances[row][3]))
    aligned, skipped = {}, {}
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        posteriors = [_with_unknown(utterances[row][3]) for row in rows]
        for row, spans in zip(rows, alignment.force_align(posteriors, [tokens[row] for row in rows]), strict=True):
            name, text, seconds, log_probs = utterances[row]
            if not any(token < tokenizer.vocab_size for token in tokens[row]):
                skipped[row] = f"{name}: its transcript is empty, or has no character that the recognizer knows"
                continue
            if spans is None:
                skipped[row] = (
                    f"{name}: {len(log_probs)} frames of {frame * 1000:g} ms cannot hold the "
                    f"{alignment.frames_needed(tokens[row])} that "
                    "its transcript needs; check that text and audio belong together"
                )
                continue
            of_word: dict[int | None, list[alignment.Span]] = defaultdict(list)
            for span, (_, word) in zip(spans, labelled[row], strict=True):
                of_word[word].append(span)
            words: list[alignment.Word] = []
            for word, label in enumerate(text.split()):
                timed = alignment.time_word(label, of_word[word], pieces, frame)
                words += timed if by_character else [alignment.joined_word(label, timed)]
            aligned[row] = alignment.AlignedUtterance(name, seconds, tuple(words))
    return [aligned[row] for row in sorted(aligned)], [skipped[row] for row in sorted(skipped)]


def word_tokens(tokenizer: Tokenizer, text: str) -> list[tuple[int, int | None]]:
    """Returns the tokens of a transcript, each with the index of its word; None for a space.

    `vocab_size` represents characters that the tokenizer does not know.
    """
    words = text.split()
    known = {character: has_known_character(tokenizer, character) for character in set(text)}
    if all(map(known.__getitem__, "".join(words))):
        labelled, word_index, begins = [], -1, True
        for token in tokenizer.encode(" ".join(words)):
            piece = tokenizer.pieces[token]
            begins = begins or piece.startswith(SPACE)
            if letters := piece.strip(SPACE):
                word_index, begins = word_index + begins, piece.endswith(SPACE)
            labelled.append((token, word_index if letters else None))
        if word_index + 1 == len(words):
            return labelled
    labelled = []
    for word_index, word in enumerate(words):
        space = " " if word_index else ""
        for is_known, run in itertools.groupby(word, known.__getitem__):
            ids = tokenizer.encode(space + "".join(run) if is_known else space)
            labelled += [(token, word_index if tokenizer.pieces[token].strip(SPACE) else None) for token in ids]
            if not is_known:
                labelled.append((tokenizer.vocab_size, word_index))
            space = ""
    return labelled


def has_known_character(tokenizer: Tokenizer, text: str) -> bool:
    return any(tokenizer.pieces[token].strip(SPACE) for token in tokenizer.encode(text))


def _with_unknown(log_probs: Posteriors) -> np.ndarray:
    """Appends an id for unknown characters to log-probabilities.

    It has half the probability of all non-blank tokens, so that it takes no frame in which a known character dominates.
    """
    something = np.logaddexp.reduce(log_probs[:, 1:], axis=1, keepdims=True) - np.log(2)
    return np.concatenate([log_probs, something], axis=1).astype(np.float32)
