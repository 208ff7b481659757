"""N-gram models from text: interpolated modified Kneser-Ney, as an ARPA file.

Chen and Goodman 1998, in the form that KenLM's lmplz gives it (Heafield et al. 2013): all orders interpolate down to
the uniform distribution over words, "</s>" and "<unk>"; an n-gram that begins a sentence keeps its count, because
nothing can stand before it. Everything is array arithmetic over the sorted distinct n-grams of each order.
"""

import array
import dataclasses
import gzip
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.core.errors import DataError
from jax_speechlm.decoding.lm.fusion import Numbers
from jax_speechlm.decoding.lm.ngram import BEGIN, END, UNKNOWN

MIN_ORDER, MAX_ORDER = 2, 6  # what the kenlm package reads
_UNKNOWN, _BEGIN, _END = range(3)  # ids; words follow
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # for counts 1, 2 and 3 or more, where the counts of counts give none


@dataclasses.dataclass(frozen=True)
class Order:
    """The distinct n-grams of one length.

    Attributes:
      context: the (n-1)-gram that each begins with, as its row in the order below; 0 for single words.
      word: id of the last word.
      suffix: the (n-1)-gram that each ends with, as its row in the order below; 0 for single words.
      count: occurrences; of the words, "<unk>" and "<s>" have none.
      log10_prob: of the word after the context.
      log10_backoff: weight of the order below after this n-gram; 0 where nothing follows it.
    """

    context: Int[np.ndarray, " ngrams"]
    word: Int[np.ndarray, " ngrams"]
    suffix: Int[np.ndarray, " ngrams"]
    count: Int[np.ndarray, " ngrams"]
    log10_prob: Float[np.ndarray, " ngrams"]
    log10_backoff: Float[np.ndarray, " ngrams"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimated model.

    Attributes:
      words: the word of each id; the first three are "<unk>", "<s>" and "</s>".
      orders: its n-grams, single words first.
      discounts: of each order, for counts 1, 2 and 3 or more.
      fallbacks: the orders whose counts of counts gave no discounts, so that fixed ones stand in.
    """

    words: tuple[str, ...]
    orders: tuple[Order, ...]
    discounts: tuple[tuple[float, float, float], ...]
    fallbacks: tuple[int, ...]


def estimate(sentences: Iterable[Sequence[str]], order: int, prune: Sequence[int] = ()) -> Estimate:
    """Estimates a model.

    Args:
      sentences: the units of each; read once. None may be one of the three control words.
      order: n of the longest n-grams.
      prune: n-grams of the n-th order that occur at most prune[n - 1] times are left out; the last value holds for all
        longer ones. Discounts come from the full counts, and what is left out goes to the order below.

    Raises:
      DataError: there is no sentence.
      ValueError: an order that KenLM cannot read, or thresholds that would drop words or fall with the order.
    """
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise ValueError(f"order is {order}; the kenlm package reads orders {MIN_ORDER} to {MAX_ORDER}")
    thresholds = [*prune, *[prune[-1] if prune else 0] * order][:order]
    if thresholds[0] != 0 or sorted(thresholds) != thresholds:
        raise ValueError(f"prune is {tuple(prune)}; it starts with 0, for single words, and never falls")
    words, tokens = _read(sentences)
    counted = _count(tokens, len(words), order)
    adjusted = _adjust(counted)
    discounts = [_discounts(counts) for counts in adjusted]
    fallbacks = tuple(n for n, found in enumerate(discounts, start=1) if found is None)
    discounts = [found or _FALLBACK_DISCOUNTS for found in discounts]

    shares = []  # of each order: (probability, backoff of the context, which n-grams stay)
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
    """The words by id, and all sentences as ids, each between "<s>" and "</s>"."""
    numbers = Numbers()
    for control in (UNKNOWN, BEGIN, END):
        numbers[control]
    tokens = array.array("i")
    for units in sentences:
        tokens.append(_BEGIN)
        tokens.extend(map(numbers.__getitem__, units))
        tokens.append(_END)
    if not tokens:
        raise DataError("there is no sentence to learn from: check the text, or name other sets")
    return tuple(numbers.values_by_number), np.frombuffer(tokens, np.int32).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Distinct n-grams as in `Order`, their occurrences, and which begin a sentence."""

    context: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    count: np.ndarray
    begins: np.ndarray


def _count(tokens: np.ndarray, vocab_size: int, order: int) -> list[_Counted]:
    words, zeros = np.arange(vocab_size), np.zeros(vocab_size, np.int64)
    counts = np.bincount(tokens, minlength=vocab_size)
    counted = [_Counted(zeros, words, zeros, counts, words == _BEGIN)]
    # row[i]: which (n-1)-gram begins at token i; it has room for one more up to the end of its sentence.
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
    """Of each n-gram but the longest, how many different words stand before it: Kneser and Ney's count."""
    adjusted = []
    for grams, longer in itertools.pairwise(counted):
        before = np.bincount(longer.suffix, minlength=len(grams.word))
        adjusted.append(np.where(grams.begins, grams.count, before))
    adjusted[0][_BEGIN] = 0  # never predicted
    return [*adjusted, counted[-1].count]


def _discounts(counts: Int[np.ndarray, " ngrams"]) -> tuple[float, float, float] | None:
    """Chen and Goodman 1998, equation 26; None where a count of counts is missing or a discount comes out of range."""
    once, twice, thrice, four = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return None
    y = once / (once + 2 * twice)
    found = 1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice
    return found if all(0 <= discount <= k for k, discount in enumerate(found, start=1)) else None


def _tabulate(counted: list[_Counted], shares: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[Order, ...]:
    """The n-grams that stay, renumbered. A context and a suffix of one that stays stay too: neither is rarer."""
    orders, number = [], np.zeros(1, np.int64)
    for n, (grams, (prob, _, kept)) in enumerate(zip(counted, shares, strict=True), start=1):
        backoff = shares[n][1] if n < len(shares) else np.ones(len(kept))
        columns = grams.context, grams.word, grams.suffix, grams.count, prob, backoff
        context, word, suffix, count, prob, backoff = (column[kept] for column in columns)
        with np.errstate(divide="ignore"):
            orders.append(Order(number[context], word, number[suffix], count, np.log10(prob), np.log10(backoff)))
        number = np.cumsum(kept) - 1
    orders[0].log10_prob[_BEGIN] = -99.0  # what the format puts where nothing is predicted
    return tuple(orders)


def write_arpa(model: Estimate, path: str | Path) -> None:
    """Writes a model as an ARPA file, compressed where the name ends in .gz."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with (
        gzip.open(partial, "wt", encoding="utf-8")
        if path.suffix == ".gz"
        else partial.open("w", encoding="utf-8") as file
    ):
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(grams.word)}\n" for n, grams in enumerate(model.orders, start=1))
        words = np.array(model.words, object)
        spelled = None
        for n, grams in enumerate(model.orders, start=1):
            file.write(f"\n\\{n}-grams:\n")
            last = words[grams.word]
            spelled = last if spelled is None else spelled[grams.context] + " " + last
            if n == len(model.orders):
                file.writelines(map("{:.7f}\t{}\n".format, grams.log10_prob.tolist(), spelled))
            else:
                numbers = grams.log10_prob.tolist(), spelled, grams.log10_backoff.tolist()
                file.writelines(map("{:.7f}\t{}\t{:.7f}\n".format, *numbers))
        file.write("\n\\end\\\n")
    partial.replace(path)
