"""Documents of speech units for language models of text and speech: single utterances, and interleaved with text.

Speech is a sequence of deduplicated units (Lakhotia et al. 2021), each stored with its number of frames; the codes of a
codec are not deduplicated. The document
of an utterance is the speech token and its units. An interleaved document holds an utterance once, some words as text
and others as units, with switches at word ends (Nguyen et al. 2024, Spirit-LM): units follow the speech token, text
follows the text token. Documents begin in text, so a document of text is the same as for a model of text alone.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.core.shuffle import derive_key, uniform
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage import tokens
from data_pipelines.storage.index import Index, Part
from data_pipelines.storage.tokens import UNIT_TOKEN, TokenStore
from data_pipelines.storage.units import UnitIdStore, deduplicate, open_unit_ids, read_units
from data_pipelines.storage.word_times import read_word_times

_INTERLEAVING = 3  # stream of randomness
_WITHOUT_TIMES = "; or train without interleaved documents: --data.interleaved 0"


class Markers(NamedTuple):
    """Ids of the speech token, the text token and unit 0 in the vocabulary."""

    speech: int
    text: int
    first_unit: int


class Stretch(NamedTuple):
    """Consecutive words of an utterance, `first` to `stop` - 1, as speech or text."""

    spoken: bool
    first: int
    stop: int


def draw_stretches(num_words: int, mean_words: float, key: int) -> list[Stretch]:
    """Cuts an utterance into alternating stretches of speech and text that contain each word once.

    A stretch ends after a word with probability 1 / mean_words; if none does, one cut is drawn. The kind of the first
    stretch is drawn too.

    Args:
      num_words: at least 2.
    """
    draws = uniform(np.arange(num_words + 1), key)
    cuts = np.flatnonzero(draws[1:num_words] < 1 / mean_words) + 1
    if not len(cuts):
        cuts = np.array([1 + int(draws[num_words] * (num_words - 1))])
    bounds = [0, *cuts.tolist(), num_words]
    spoken = bool(draws[0] < 0.5)
    return [Stretch(spoken ^ bool(n % 2), *span) for n, span in enumerate(itertools.pairwise(bounds))]


def word_frames(spans: np.ndarray, num_frames: int, frame_samples: int) -> np.ndarray:
    """Assigns all frames of an utterance to its words, with boundaries in the middle between adjacent words.

    Args:
      spans: integers [words, 2], first sample of the words and one past their last.

    Returns:
      int64 [words + 1], first frame of each word, then the number of frames.
    """
    middle = (spans[:-1, 1].astype(np.int64) + spans[1:, 0]) / 2
    inner = np.clip(np.rint(middle / frame_samples), 0, num_frames).astype(np.int64)
    return np.concatenate([[0], np.maximum.accumulate(inner), [num_frames]])


def spoken_document(units: np.ndarray, frames: np.ndarray, markers: Markers) -> np.ndarray:
    """Returns the speech token and the units, each with its number of frames, as `UNIT_TOKEN`."""
    document = np.zeros(len(units) + 1, UNIT_TOKEN)
    document["id"][0], document["id"][1:], document["frames"][1:] = markers.speech, units + markers.first_unit, frames
    return document


def interleaved_document(
    codes: np.ndarray,
    words: list[str],
    first_frame: np.ndarray,
    stretches: list[Stretch],
    tokenizer: Tokenizer,
    markers: Markers,
    sequence: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] = deduplicate,
) -> np.ndarray:
    """Returns an utterance as alternating units and text, `UNIT_TOKEN`; empty if a spoken stretch has no frame.

    Args:
      sequence: `unit ids of frames -> (units, their numbers of frames)`, such as `Units.sequence`.
    """
    parts = []
    for number, (spoken, first, stop) in enumerate(stretches):
        if spoken:
            frames = codes[first_frame[first] : first_frame[stop]]
            if not len(frames):
                return np.zeros(0, UNIT_TOKEN)
            parts.append(spoken_document(*sequence(frames), markers))
            continue
        ids = tokenizer.encode(" ".join(words[first:stop]))
        text = np.zeros(len(ids) + (number > 0), UNIT_TOKEN)
        text["id"] = [markers.text, *ids] if number else ids
        parts.append(text)
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class UnitDocuments:
    """Documents of one kind, for `packing`.

    Attributes:
      store: their tokens; missing documents have length 0.
      missing: number of missing documents, by reason.
    """

    store: TokenStore
    missing: Counter[str]


def spoken_documents(index: Index, units: Path | str, markers: Markers) -> UnitDocuments:
    """Makes a document of units for every utterance.

    Raises:
      DataError: a part is not labelled with these units.
    """
    codes = open_unit_ids(index, units)
    name = _name("spoken", codes.units.fingerprint, markers)

    def make(part: Part) -> Iterator[np.ndarray]:
        first = _first_row(index, part)
        for row in range(first, first + part.num_rows):
            found = _codes(codes, row)
            yield spoken_document(*codes.units.sequence(found), markers) if len(found) else np.zeros(0, UNIT_TOKEN)

    store = tokens.open_documents(index, name, UNIT_TOKEN, make)
    return UnitDocuments(store, Counter({"without units": int(np.count_nonzero(store.lengths == 0))}))


def interleaved_documents(
    index: Index, units: Path | str, tokenizer: Tokenizer, markers: Markers, *, mean_words: float, draws: int, seed: int
) -> UnitDocuments:
    """Makes `draws` interleaved documents for every utterance with word times.

    The choice of spoken words is a pure function of (seed, row of the part, draw).

    Raises:
      DataError: a part is not labelled with these units, or has no word times.
    """
    known = read_units(units)
    codes, times = open_unit_ids(index, units), {part: read_word_times(part, _WITHOUT_TIMES) for part in index.parts}
    missing: Counter[str] = Counter()

    def make(part: Part) -> Iterator[np.ndarray]:
        first = _first_row(index, part)
        for row, text in enumerate(part.texts()):
            found, spans = _codes(codes, first + row), times[part].of(row)
            for draw in range(draws):
                if len(spans) < 2:
                    yield np.zeros(0, UNIT_TOKEN)
                    continue
                stretches = draw_stretches(len(spans), mean_words, derive_key(seed, _INTERLEAVING, row, draw))
                first_frame = word_frames(spans, len(found), known.frame_samples)
                yield interleaved_document(
                    found, text.split(), first_frame, stretches, tokenizer, markers, known.sequence
                )

    stores = []
    for part in index.parts:
        settings = tokenizer.fingerprint, times[part].fingerprint, mean_words, draws, seed
        name = _name("interleaved", known.fingerprint, markers, *settings)
        stores.append(tokens.open_documents(Index((part,)), name, UNIT_TOKEN, make, draws))
        counts = times[part].counts
        missing["not aligned"] += draws * int(np.count_nonzero(counts == 0))
        missing["of one word"] += draws * int(np.count_nonzero(counts == 1))
    store = TokenStore.join(stores)
    missing["without units"] = int(np.count_nonzero(store.lengths == 0)) - missing.total()
    return UnitDocuments(store, missing)


def _codes(codes: UnitIdStore, row: int) -> np.ndarray:
    return codes.read(row, 0, int(codes.lengths[row]))


def _first_row(index: Index, part: Part) -> int:
    return int(index.first_row[index.parts.index(part)])


def _name(kind: str, *settings: object) -> str:
    """Returns a file name with a digest of all settings that determine the content, except the index."""
    return f"{kind}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}"
