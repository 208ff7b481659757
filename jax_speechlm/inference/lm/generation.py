"""Generation that the predictors of texts, of units and of answers to speech share."""

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jax_speechlm.core.batch import seed_key
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.lm.generate import Beam, Continuations, Continues, Sampling, beam_search, sample


class Continuation(NamedTuple):
    """One continuation of a prompt.

    Attributes:
      text: without the prompt.
      log_prob: log-probability given the prompt, in nats, including the end if it ended.
      num_tokens: number of tokens, including the end if it ended.
      ended: whether the model ended the text; else it was cut off.
    """

    text: str
    log_prob: float
    num_tokens: int
    ended: bool


class UnitContinuation(NamedTuple):
    """One continuation of a document of text and speech units, otherwise as `Continuation`.

    Attributes:
      parts: the continuation as JSON objects, {"text": ...} or {"units": [...]}.
      num_tokens: number of tokens, including modality switches and the end.
    """

    parts: tuple[dict[str, str | list[int]], ...]
    log_prob: float
    num_tokens: int
    ended: bool


def prompt_keys(seed: int, prompt: bytes, samples: int) -> Key[Array, " samples"]:
    """Derives the keys of a prompt's samples from the seed and the prompt, not from its position in a list."""
    key = jax.random.fold_in(seed_key(seed), zlib.crc32(prompt))
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(samples))


def generate(
    model: Continues,
    vocabulary: Vocabulary,
    prompt: Array,
    lengths: Array,
    keys: Array | None,
    method: Sampling | Beam,
    **limits: Any,
) -> Continuations:
    """Runs `decoding.lm.generate.sample` or `beam_search`, which uses no keys."""
    if isinstance(method, Beam):
        return beam_search(model, vocabulary, prompt, lengths, method, **limits)
    return sample(model, vocabulary, prompt, lengths, keys, method, **limits)


def read_continuations(
    continuations: Continuations,
    vocabulary: Vocabulary,
    read: Callable[[list[int]], Any],
    kind: type[Continuation] | type[UnitContinuation] = Continuation,
) -> list[Any]:
    """Converts one prompt's arrays [samples or beam, ...] to continuations.

    Entries without a finite log-probability, of a search with too few hypotheses, are left out. `read` converts ids
    without an end to the first field of `kind`.
    """
    results = []
    tokens, *others = jax.tree.map(np.asarray, continuations)
    rows = tokens.reshape(-1, tokens.shape[-1])
    for row, length, log_prob in zip(rows, *(array.reshape(-1).tolist() for array in others), strict=True):
        if math.isfinite(log_prob):
            ids = row[:length].tolist()
            ended = bool(ids) and ids[-1] in vocabulary.ends
            results.append(kind(read(ids[: length - ended]), log_prob, length, ended))
    return results
