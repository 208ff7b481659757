"""Co-occurrence counts of words, and their batches, for GloVe (Pennington et al. 2014, section 4.2).

Two words of a document at a distance of d <= `window` co-occur 1/d times, in both directions. Words without an id are
left out before. Batches are a pure function of (seed, step): each pair occurs once in an epoch, in an order that is
evaluated per index (`shuffle.permute`).
"""

import dataclasses
import functools
import hashlib

import numpy as np

from data_pipelines.batching.fields import BatchSpec
from data_pipelines.batching.text import TextBatches
from data_pipelines.core.shuffle import derive_key, keys_of, permute, uniform
from data_pipelines.storage.tokens import TokenStore

_ORDER, _HELD_OUT = 0, 1  # streams of randomness
_CHUNK_TOKENS = 2**20  # counted at a time


@dataclasses.dataclass(frozen=True, eq=False)
class WordPairs:
    """Pairs of words that co-occur; each in both orders, sorted by word and context.

    Attributes:
      word, context: int32 [pairs], token ids.
      count: float32 [pairs].
    """

    word: np.ndarray
    context: np.ndarray
    count: np.ndarray

    def take(self, rows: np.ndarray) -> "WordPairs":
        """Returns some of the pairs."""
        return WordPairs(self.word[rows], self.context[rows], self.count[rows])

    def split(self, share: float, seed: int) -> tuple["WordPairs", "WordPairs"]:
        """Returns the pairs without a share of them drawn at random, and that share."""
        held_out = uniform(np.arange(len(self.count)), derive_key(seed, _HELD_OUT)) < share
        return self.take(np.flatnonzero(~held_out)), self.take(np.flatnonzero(held_out))


def count_pairs(tokens: TokenStore, vocab_size: int, window: int) -> WordPairs:
    """Counts the co-occurrences in all documents; needs memory for the pairs of a million tokens, and for the result.

    Args:
      vocab_size: ids are below it.
      window: largest distance.
    """
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.float64)
    ends = np.cumsum(tokens.lengths)
    first = 0
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + _CHUNK_TOKENS)))
        documents = [tokens.read(row, 0, int(tokens.lengths[row])) for row in range(first, last)]
        ids = np.concatenate(documents).astype(np.int64)
        document = np.repeat(np.arange(len(documents)), tokens.lengths[first:last])
        new_keys, new_counts = [keys], [counts]
        for distance in range(1, window + 1):
            near = document[:-distance] == document[distance:]
            left, right = ids[:-distance][near], ids[distance:][near]
            new_keys += [left * vocab_size + right, right * vocab_size + left]
            new_counts += [np.full(len(left), 1 / distance)] * 2
        keys, place = np.unique(np.concatenate(new_keys), return_inverse=True)
        counts = np.bincount(place, np.concatenate(new_counts), minlength=len(keys))
        first = last
    word, context = np.divmod(keys, vocab_size)
    return WordPairs(word.astype(np.int32), context.astype(np.int32), counts.astype(np.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class WordPairPlan:
    """Rows of pairs at every step.

    Attributes:
      pairs: the pairs of an epoch.
      context: pairs of a row.
      sequences_per_batch: rows of a global batch.
      seed: of the order, a new one in every epoch; None keeps the pairs' own order for one epoch, with filler at its
        end.
    """

    pairs: WordPairs
    context: int
    sequences_per_batch: int
    seed: int | None

    def __post_init__(self):
        """Raises ValueError if there is no pair."""
        if not len(self.pairs.count):
            raise ValueError("no two words of these texts co-occur: prepare longer texts, or lower --min-count")

    @property
    def batch_sizes(self) -> set[int]:
        """Rows of its global batches."""
        return {self.sequences_per_batch}

    @property
    def pairs_per_batch(self) -> int:
        """Pairs of a global batch."""
        return self.context * self.sequences_per_batch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over all pairs."""
        return -(-len(self.pairs.count) // self.pairs_per_batch)

    @property
    def fill_share(self) -> float:
        """Share of the places of training rows with a pair."""
        return 1.0

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the plan; equal only for plans with the same batch at every step."""
        digest = hashlib.sha256(repr((self.context, self.sequences_per_batch, self.seed)).encode())
        for array in (self.pairs.word, self.pairs.context, self.pairs.count):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """Formats the number of pairs and of steps."""
        return (
            f"{len(self.pairs.count):,} pairs of words that co-occur {self.pairs.count.sum():,.0f} times; "
            f"{self.steps_per_epoch} steps an epoch of {self.pairs_per_batch:,} pairs"
        )

    def rows(self, step: int, host: int, num_hosts: int) -> tuple[np.ndarray, np.ndarray]:
        """Plans this host's rows of the global batch of a step.

        Returns:
          int64 [rows, context], indices of pairs, -1 for filler; int32 [rows], numbers of the rows, -1 for filler.
        """
        size = self.sequences_per_batch // num_hosts
        row = step * self.sequences_per_batch + host * size + np.arange(size)
        number = row[:, None] * self.context + np.arange(self.context)
        epoch, place = np.divmod(number, len(self.pairs.count))
        if self.seed is not None:
            place = permute(place, len(self.pairs.count), keys_of(derive_key(self.seed, _ORDER), epoch))
        else:
            place = np.where(epoch == 0, place, -1)
        return place, np.where(place[:, 0] >= 0, row % 2**31, -1).astype(np.int32)


def open_word_pairs(
    plan: WordPairPlan, *, host: int, num_hosts: int, start_step: int = 0, num_steps: int | None = None
) -> TextBatches:
    """Opens the batches of a plan from any step on.

    Args:
      host, num_hosts: number of this host, and of all; it reads a contiguous share of every batch's rows.

    Raises:
      ValueError: the rows of a batch do not divide among the hosts.
    """
    if plan.sequences_per_batch % num_hosts:
        raise ValueError(
            f"batches of {plan.sequences_per_batch} rows do not divide among {num_hosts} hosts: set "
            "data.tokens_per_batch to a multiple of data.context and of the number of hosts"
        )
    spec = BatchSpec.text(word_pairs=True)

    def make(step: int) -> dict[str, np.ndarray]:
        place, example_id = plan.rows(step, host, num_hosts)
        batch, is_pair = spec.empty({"rows": len(place), "context": plan.context}), place >= 0
        pairs = plan.pairs.take(place[is_pair])
        batch["tokens"][is_pair], batch["context_tokens"][is_pair] = pairs.word, pairs.context
        batch["count"][is_pair], batch["segment"][is_pair] = pairs.count, 1
        batch["position"][:] = np.arange(plan.context) * is_pair
        batch["example_id"][:], batch["weight"][:] = example_id, example_id >= 0
        return batch

    return TextBatches(make, start_step, num_steps, prefetch=4)
