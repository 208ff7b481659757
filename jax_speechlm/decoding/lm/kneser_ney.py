"""Estimation of n-gram models by interpolated modified Kneser-Ney smoothing, written as ARPA files.

The method is Chen and Goodman 1998 in the form of KenLM's lmplz (Heafield et al. 2013): all orders interpolate down to
the uniform distribution over words, "</s>" and "<unk>"; an n-gram at the start of a sentence keeps its count, because
no word can precede it. All computations are array operations over the sorted distinct n-grams of an order.
"""

import array
import dataclasses
import gzip
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import replacing
from jax_speechlm.decoding.lm.fusion import Numbers
from jax_speechlm.decoding.lm.ngram import BEGIN, END, UNKNOWN

MIN_ORDER, MAX_ORDER = 2, 6  # orders that the kenlm package reads
_UNKNOWN, _BEGIN, _END = range(3)  # ids; words follow
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # for counts 1, 2 and 3 or more, if they cannot be estimated


@dataclasses.dataclass(frozen=True)
class _Grams:
    """The distinct n-grams of one length.

    Attributes:
      context: row of the leading (n-1)-gram in the order below; 0 for single words.
      word: id of the last word.
      suffix: row of the trailing (n-1)-gram in the order below; 0 for single words.
      count: occurrences; 0 for the words "<unk>" and "<s>".
    """

    context: Int[np.ndarray, " ngrams"]
    word: Int[np.ndarray, " ngrams"]
    suffix: Int[np.ndarray, " ngrams"]
    count: Int[np.ndarray, " ngrams"]


@dataclasses.dataclass(frozen=True)
class _Counted(_Grams):
    begins: Bool[np.ndarray, " ngrams"]  # whether they start a sentence


@dataclasses.dataclass(frozen=True)
class Order(_Grams):
    """N-grams with the probability of the word after the context, and the weight of the order below after them."""

    log10_prob: Float[np.ndarray, " ngrams"]
    log10_backoff: Float[np.ndarray, " ngrams"]  # 0 if no n-gram continues it


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimated model.

    Attributes:
      words: word by id; the first three are "<unk>", "<s>" and "</s>".
      orders: n-grams by order, single words first.
      discounts: by order, for counts 1, 2 and 3 or more.
      fallbacks: orders with fixed discounts, because their counts of counts do not allow an estimate.
    """

    words: tuple[str, ...]
    orders: tuple[Order, ...]
    discounts: tuple[tuple[float, float, float], ...]
    fallbacks: tuple[int, ...]


def estimate(sentences: Iterable[Sequence[str]], order: int, prune: Sequence[int] = ()) -> Estimate:
    """Estimates a model.

    Args:
      sentences: lists of units, read once. None of the units may be a control word.
      prune: n-grams of order n that occur at most prune[n - 1] times are dropped; the last value applies to all longer
        ones. Discounts are estimated from the full counts, and the probability of dropped n-grams goes to the order
        below.

    Raises:
      DataError: the text has no sentence.
      ValueError: KenLM cannot read the order, or thresholds would drop words or decrease with the order.
    """
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise ValueError(f"order is {order}; the kenlm package reads orders {MIN_ORDER} to {MAX_ORDER}")
    thresholds = [*prune, *[prune[-1] if prune else 0] * order][:order]
    if thresholds[0] != 0 or sorted(thresholds) != thresholds:
        raise ValueError(f"prune is {tuple(prune)}; it has to start with 0, for single words, and must not decrease")
    words, tokens = _read(sentences)
    counted = _count(tokens, len(words), order)
    adjusted = _adjust(counted)
    discounts = [_discounts(counts) for counts in adjusted]
    fallbacks = tuple(n for n, values in enumerate(discounts, start=1) if values is None)
    discounts = [values or _FALLBACK_DISCOUNTS for values in discounts]

    shares = []  # by order: (probability, backoff of the context, which n-grams are kept)
    below = np.full(1, 1.0 / (len(words) - 1))  # uniform: all but "<s>"
    for grams, counts, discount, threshold in zip(counted, adjusted, discounts, thresholds, strict=True):
        kept = (grams.count > threshold) | (len(shares) == 0)
        amount = np.where(kept, np.array([0.0, *discount])[np.minimum(counts, 3)], counts)
        contexts = len(below)
        total = np.bincount(grams.context, counts, minlength=contexts)
        freed = np.bincount(grams.context, amount, minlength=contexts)
        backoff = np.divide(freed, total, out=np.ones(contexts), where=total > 0)
        prob = (counts - amount) / total[grams.context] + backoff[grams.context] * below[grams.suffix]
        shares.append((prob, backoff, kept))
        below = prob
    return Estimate(words, _tabulate(counted, shares), tuple(discounts), fallbacks)


def _read(sentences: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], Int[np.ndarray, " tokens"]]:
    """Returns the words by id, and the ids of all sentences between "<s>" and "</s>"."""
    ids = Numbers()
    for control in (UNKNOWN, BEGIN, END):
        ids[control]
    tokens = array.array("i")
    for units in sentences:
        tokens.append(_BEGIN)
        tokens.extend(map(ids.__getitem__, units))
        tokens.append(_END)
    if not tokens:
        raise DataError("the text has no sentence: check the files, or name other sets")
    return tuple(ids.values_by_number), np.frombuffer(tokens, np.int32).astype(np.int64)


def _count(tokens: np.ndarray, vocab_size: int, order: int) -> list[_Counted]:
    words, zeros = np.arange(vocab_size), np.zeros(vocab_size, np.int64)
    counts = np.bincount(tokens, minlength=vocab_size)
    counted = [_Counted(zeros, words, zeros, counts, words == _BEGIN)]
    # row[i]: the (n-1)-gram that starts at token i, if its sentence has another token after it.
    row, start = tokens, np.arange(len(tokens))
    for n in range(2, order + 1):
        start = start[tokens[start + n - 2] != _END]
        keys = row[start] * vocab_size + tokens[start + n - 1]
        distinct, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        context, word = np.divmod(distinct, vocab_size)
        counted.append(_Counted(context, word, row[start[first] + 1], counts, counted[-1].begins[context]))
        row = np.zeros(len(tokens), np.int64)
        row[start] = inverse
    return counted


def _adjust(counted: list[_Counted]) -> list[Int[np.ndarray, " ngrams"]]:
    """Returns the number of different words before every n-gram (Kneser-Ney counts); occurrences for the longest."""
    adjusted = []
    for grams, longer in itertools.pairwise(counted):
        before = np.bincount(longer.suffix, minlength=len(grams.word))
        adjusted.append(np.where(grams.begins, grams.count, before))
    adjusted[0][_BEGIN] = 0  # "<s>" is never predicted
    return [*adjusted, counted[-1].count]


def _discounts(counts: Int[np.ndarray, " ngrams"]) -> tuple[float, float, float] | None:
    """Returns discounts (Chen and Goodman 1998, equation 26); None if a count of counts is 0 or one is out of range."""
    once, twice, thrice, four = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return None
    y = once / (once + 2 * twice)
    discounts = 1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice
    return discounts if all(0 <= discount <= k for k, discount in enumerate(discounts, start=1)) else None


def _tabulate(counted: list[_Counted], shares: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[Order, ...]:
    """Renumbers the kept n-grams. Context and suffix of a kept n-gram are kept too, as neither occurs less often."""
    orders, new_row = [], np.zeros(1, np.int64)
    for n, (grams, (prob, _, kept)) in enumerate(zip(counted, shares, strict=True), start=1):
        backoff = shares[n][1] if n < len(shares) else np.ones(len(kept))
        columns = grams.context, grams.word, grams.suffix, grams.count, prob, backoff
        context, word, suffix, count, prob, backoff = (column[kept] for column in columns)
        with np.errstate(divide="ignore"):
            orders.append(Order(new_row[context], word, new_row[suffix], count, np.log10(prob), np.log10(backoff)))
        new_row = np.cumsum(kept) - 1
    orders[0].log10_prob[_BEGIN] = -99.0  # value of the format for words that are never predicted
    return tuple(orders)


def write_arpa(model: Estimate, path: str | Path) -> None:
    """Writes a model as an ARPA file, compressed if the name ends in .gz."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    open_text = gzip.open if path.suffix == ".gz" else open
    with replacing(path) as partial, open_text(partial, "wt", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(grams.word)}\n" for n, grams in enumerate(model.orders, start=1))
        words = np.array(model.words, object)
        texts = np.array([""], object)
        for n, grams in enumerate(model.orders, start=1):
            file.write(f"\n\\{n}-grams:\n")
            texts = texts[grams.context] + (" " if n > 1 else "") + words[grams.word]
            line = "{:.7f}\t{}\n" if n == len(model.orders) else "{:.7f}\t{}\t{:.7f}\n"
            file.writelines(map(line.format, grams.log10_prob.tolist(), texts, grams.log10_backoff.tolist()))
        file.write("\n\\end\\\n")
