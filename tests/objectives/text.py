"""Small text batches and models for the tests of text objectives."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.tokenizers.base import CharTokenizer
from data_pipelines.tokenizers.words import WordTokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.models.transformer_config import TransformerConfig

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstu ")
WORDS = WordTokenizer(tuple(f"word{letter}" for letter in TOKENIZER.characters), tuple(range(60, 38, -1)))
"""Words with the ids of the characters of `TOKENIZER`."""
VOCABULARY = Vocabulary.of(TOKENIZER)
MODEL = TransformerConfig(dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=24, dropout=0.1)


def documents(seed: int, lengths: Sequence[int], letters: str = TOKENIZER.characters) -> list[list[int]]:
    """Random documents of so many tokens between their two boundaries."""
    rng = np.random.default_rng(seed)
    return [VOCABULARY.enclose(TOKENIZER.encode("".join(rng.choice(list(letters), length)))) for length in lengths]


def pack(rows: Sequence[Sequence[list[int]]], time: int, first_id: int = 0) -> dict[str, np.ndarray]:
    """The batch whose rows hold these documents one behind the other; a row without documents is a filler."""

    def zeros():
        return np.zeros((len(rows), time), np.int32)

    batch = {"tokens": zeros(), "segment": zeros(), "position": zeros()}
    for place, row in enumerate(rows):
        start = 0
        for number, ids in enumerate(row, start=1):
            stretch = place, slice(start, start + len(ids))
            batch["tokens"][stretch], batch["segment"][stretch] = ids, number
            batch["position"][stretch] = np.arange(len(ids))
            start += len(ids)
    real = np.array([bool(row) for row in rows])
    batch["example_id"] = np.where(real, np.arange(len(rows)) + first_id, -1).astype(np.int32)
    batch["weight"] = real.astype(np.float32)
    return batch


def reorder(batch: dict[str, np.ndarray], order: Sequence[int], extra: int) -> dict[str, np.ndarray]:
    """The batch with its rows in another order and `extra` tokens of padding, which hold junk."""
    batch = {name: value[np.array(order)] for name, value in batch.items()}
    junk = {"tokens": 3, "segment": 0, "position": 0}
    return batch | {name: np.pad(batch[name], ((0, 0), (0, extra)), constant_values=junk[name]) for name in junk}
