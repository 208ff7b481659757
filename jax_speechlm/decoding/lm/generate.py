"""Continuing token sequences with a causal transformer: greedy, sampling, beam search.

All of it runs on the device in one compiled program of fixed shapes, with the keys and values of earlier tokens cached.
A row's result depends on its prompt, its key and the settings: not on padding, batch size or row order.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from pydantic import Field, PositiveInt

from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import PADDING, Modality, Vocabulary
from jax_speechlm.models.transformer import Cache, Transformer, init_cache

COLDEST = 1e-5
"""A temperature below this is greedy search, and is computed as such: its inverse would overflow."""

_MOST = 1e6  # of settings that numbers are divided or multiplied by, so that float32 holds the results

Prompt = Int[Array, "batch prompt"] | Float[Array, "batch prompt dim"]
"""What is continued: ids, or vectors that stand where tokens' embeddings do (`Transformer.embed`)."""


class Sampling(Config):
    """Draws each token from the model's distribution, narrowed by these settings in the order they stand in.

    Attributes:
      repetition_penalty: logits of tokens that the row already holds are divided by it where positive and multiplied by
        it where negative (Keskar et al. 2019, section 4.1).
      temperature: divides the logits; 0, or anything below 0.00001, takes the likeliest token: greedy search.
      top_k: keeps the k likeliest tokens.
      top_p: keeps the fewest likeliest tokens whose probabilities reach p together (Holtzman et al. 2020).
    """

    repetition_penalty: Annotated[float, Field(ge=1, le=_MOST, allow_inf_nan=False)] = 1.0
    temperature: Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)] = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


GREEDY = Sampling(temperature=0.0)


class Beam(Config):
    """Searches for the continuation of the highest score, log-probability / length^length_penalty.

    Attributes:
      size: continuations kept at every length, and returned.
      length_penalty: 0 scores by probability alone, which favours short texts; 1 by the mean of a token.
    """

    size: PositiveInt = 4
    length_penalty: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] = 1.0


def method_of(sampling: Sampling, beam_size: int, length_penalty: float) -> Sampling | Beam:
    """What a command's options ask for: a beam where its size is above 0.

    Raises:
      ValueError: the size is negative, or the penalty impossible.
    """
    if beam_size < 0:
        raise ValueError(f"--beam-size must be 0 (no beam) or more, got {beam_size}")
    return Beam(size=beam_size, length_penalty=length_penalty) if beam_size else sampling


def check_counts(**counts: int) -> None:
    """Raises ValueError where one of the named options is not positive."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {count}")


class Continuations(NamedTuple):
    """What follows each prompt.

    Attributes:
      tokens: ids, with one of `Vocabulary.ends` where the text ended by itself; padding behind.
      length: how many; fewer than were allowed only where the text ended, or the context was full.
      log_prob: natural logarithm of their probability under the model, whatever narrowed the choice.
    """

    tokens: Int[Array, "*batch new"]
    length: Int[Array, "*batch"]
    log_prob: Float[Array, "*batch"]


def sample(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt_BxP: Prompt,
    length_B: Int[Array, " batch"],
    keys_B: Key[Array, " batch"],
    settings: Sampling,
    *,
    max_new: int,
    context: int | Int[Array, " batch"],
    modality: Modality | None = None,
) -> Continuations:
    """Continues every prompt by at most `max_new` tokens, until one of the vocabulary's ends or a full context.

    Args:
      prompt_BxP: what stands before a text first; anything behind `length_B`, which is at least 1.
      keys_B: one key a row; token n of a row is drawn with fold_in(its key, n).
      context: the most tokens that a row may come to have, its prompt included.
      modality: what may be added: text or units of speech alone, or None for both.
    """
    limit_B = jnp.minimum(max_new, context - length_B)
    hidden_BxD, cache = _read_prompt(transformer, prompt_BxP, length_B, max_new)
    seen = None
    if settings.repetition_penalty != 1:
        seen = jnp.zeros((len(length_B), vocabulary.size), bool)
        if prompt_BxP.ndim == 2:
            inside = jnp.arange(prompt_BxP.shape[1]) < length_B[:, None]
            seen = _mark(seen, jnp.where(inside, prompt_BxP, PADDING))

    def choose(state: dict[str, Any]) -> dict[str, Any]:
        """Appends a token to every row that is not done."""
        logits_BxV = transformer.logits(state["hidden"])
        keys = jax.vmap(lambda key: jax.random.fold_in(key, state["step"]))(keys_B)
        narrowed = jnp.where(vocabulary.may_follow(modality), logits_BxV, -jnp.inf)
        token_B = jnp.where(state["done"], PADDING, choose_tokens(narrowed, keys, settings, state["seen"]))
        log_prob_B = _at(jax.nn.log_softmax(logits_BxV), token_B)
        length_B = state["length"] + ~state["done"]
        return state | {
            "step": state["step"] + 1,
            "token": token_B,
            "tokens": jax.lax.dynamic_update_index_in_dim(state["tokens"], token_B, state["step"], axis=1),
            "length": length_B,
            "log_prob": state["log_prob"] + jnp.where(state["done"], 0, log_prob_B),
            "seen": None if seen is None else _mark(state["seen"], token_B[:, None]),
            "done": state["done"] | jnp.isin(token_B, np.array(vocabulary.ends)) | (length_B >= limit_B),
        }

    def advance(state: dict[str, Any]) -> dict[str, Any]:
        position_B = jnp.where(state["done"], -1, length_B + state["step"] - 1)
        hidden, cache = transformer.decode(state["token"][:, None], position_B[:, None], state["cache"])
        return choose(state | {"hidden": hidden[:, 0], "cache": cache})

    rows = len(length_B)
    state = {
        "step": jnp.int32(0),
        "hidden": hidden_BxD,
        "cache": cache,
        "tokens": jnp.full((rows, max_new), PADDING, jnp.int32),
        "length": jnp.zeros(rows, jnp.int32),
        "log_prob": jnp.zeros(rows),
        "seen": seen,
        "done": limit_B <= 0,
    }
    going = lambda state: (state["step"] < max_new) & ~jnp.all(state["done"])  # noqa: E731
    state = jax.lax.while_loop(going, advance, choose(state))
    return Continuations(state["tokens"], state["length"], state["log_prob"])


def choose_tokens(
    logits_BxV: Float[Array, "batch vocab"],
    keys_B: Key[Array, " batch"],
    settings: Sampling,
    seen_BxV: Bool[Array, "batch vocab"] | None = None,
) -> Int[Array, " batch"]:
    """One token of each row, of those whose logit is finite.

    Args:
      seen_BxV: tokens that the row already holds; needed where there is a repetition penalty.
    """
    if settings.repetition_penalty != 1:
        penalty = settings.repetition_penalty
        penalised = jnp.where(logits_BxV > 0, logits_BxV / penalty, logits_BxV * penalty)
        logits_BxV = jnp.where(seen_BxV, penalised, logits_BxV)
    if settings.temperature < COLDEST:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    logits_BxV = logits_BxV / settings.temperature
    order = None
    if settings.top_k is not None or settings.top_p < 1:
        logits_BxV, order = jax.lax.top_k(logits_BxV, min(settings.top_k or logits_BxV.shape[-1], logits_BxV.shape[-1]))
    if settings.top_p < 1:
        share = jax.nn.softmax(logits_BxV)
        before = jnp.cumsum(share, axis=-1) - share  # probability of the likelier tokens
        kept = (before < settings.top_p) | (jnp.arange(share.shape[-1]) == 0)
        logits_BxV = jnp.where(kept, logits_BxV, -jnp.inf)
    chosen_B = jax.vmap(jax.random.categorical)(keys_B, logits_BxV)
    return (chosen_B if order is None else _at(order, chosen_B)).astype(jnp.int32)


def beam_search(
    transformer: Transformer,
    vocabulary: Vocabulary,
    prompt_BxP: Prompt,
    length_B: Int[Array, " batch"],
    settings: Beam,
    *,
    max_new: int,
    context: int | Int[Array, " batch"],
    modality: Modality | None = None,
) -> Continuations:
    """The `size` best continuations found of every prompt, best first: [batch, size] of each.

    Texts that end and texts that are cut at `max_new` tokens or at a full context compete with each other. With a beam
    as wide as there are continuations the search is exhaustive. A row ends when no text still open can beat the worst
    that is kept.

    Args: as `sample`.
    """
    batch, size = len(length_B), settings.size
    limit_B = jnp.minimum(max_new, context - length_B)
    hidden_BxD, cache = _read_prompt(transformer, prompt_BxP, length_B, max_new)
    score_of = lambda log_prob, length: log_prob / length**settings.length_penalty  # noqa: E731

    def extend(state: dict[str, Any]) -> dict[str, Any]:
        """Every open text by one token."""
        step, open_BxK = state["step"], state["open"]
        log_probs = jax.nn.log_softmax(transformer.logits(state["hidden"])).reshape(batch, size, -1)
        log_probs = open_BxK[..., None] + jnp.where(vocabulary.may_follow(modality), log_probs, -jnp.inf)
        length = step + 1

        kept = state["kept"]
        for end in vocabulary.ends:
            ended, log_prob = state["tokens"].at[:, :, step].set(end), log_probs[..., end]
            kept = _keep_best(kept, (score_of(log_prob, length), log_prob, ended), length)

        going_on = log_probs.at[..., np.array(vocabulary.ends)].set(-jnp.inf).reshape(batch, -1)
        open_BxK, place_BxK = jax.lax.top_k(going_on, size)
        parent_BxK, token_BxK = jnp.divmod(place_BxK, log_probs.shape[-1])
        tokens = jnp.take_along_axis(state["tokens"], parent_BxK[..., None], axis=1).at[:, :, step].set(token_BxK)
        cut_BxK = jnp.where((length >= limit_B)[:, None], open_BxK, -jnp.inf)
        kept = _keep_best(kept, (score_of(cut_BxK, length), cut_BxK, tokens), length)
        return state | {
            "step": length,
            "open": jnp.where((length >= limit_B)[:, None], -jnp.inf, open_BxK),
            "tokens": tokens,
            "parent": parent_BxK,
            "token": token_BxK,
            "kept": kept,
        }

    def advance(state: dict[str, Any]) -> dict[str, Any]:
        row = (jnp.arange(batch)[:, None] * size + state["parent"]).reshape(-1)
        cache = jax.tree.map(lambda x: x[:, row], state["cache"])
        position = jnp.repeat(length_B, size) + state["step"] - 1
        hidden, cache = transformer.decode(state["token"].reshape(-1, 1), position[:, None], cache)
        return extend(state | {"hidden": hidden[:, 0], "cache": cache})

    def going(state: dict[str, Any]) -> Array:
        # Log-probabilities only fall, and the penalty is at most that of the full length.
        best_open = score_of(state["open"].max(-1), jnp.maximum(limit_B, 1))
        worst_kept = state["kept"]["score"].min(-1)
        return (state["step"] < max_new) & jnp.any((best_open > worst_kept) & (best_open > -jnp.inf))

    first = jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf)  # one text to begin with
    nothing = jnp.full((batch, size), -jnp.inf)
    no_tokens = jnp.full((batch, size, max_new), PADDING, jnp.int32)
    state = {
        "step": jnp.int32(0),
        "hidden": jnp.repeat(hidden_BxD, size, axis=0),
        "cache": jax.tree.map(lambda x: jnp.repeat(x, size, axis=1), cache),
        "open": jnp.where((limit_B > 0)[:, None], first, -jnp.inf),
        "tokens": no_tokens,
        "parent": jnp.zeros((batch, size), jnp.int32),
        "token": jnp.zeros((batch, size), jnp.int32),
        "kept": {
            "score": nothing,
            "log_prob": nothing,
            "tokens": no_tokens,
            "length": jnp.zeros((batch, size), jnp.int32),
        },
    }
    kept = jax.lax.while_loop(going, advance, extend(state))["kept"]
    return Continuations(kept["tokens"], kept["length"], kept["log_prob"])


def _keep_best(kept: dict[str, Array], new: tuple[Array, Array, Array], length: Array) -> dict[str, Array]:
    """The best of those kept and of new (scores, log-probabilities, tokens), which are all of one length."""
    score, log_prob, tokens = new
    new = {"score": score, "log_prob": log_prob, "tokens": tokens, "length": jnp.full(score.shape, length)}
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), kept, new)
    _, place = jax.lax.top_k(both["score"], score.shape[1])
    return {name: _take(both[name], place) for name in both}


def _take(x: Array, place_BxK: Array) -> Array:
    return jnp.take_along_axis(x, place_BxK.reshape(*place_BxK.shape, *(1,) * (x.ndim - 2)), axis=1)


def _read_prompt(transformer: Transformer, prompt_BxP: Array, length_B: Array, max_new: int) -> tuple[Array, Cache]:
    """The hidden state from which each prompt's next token follows, and a cache with room for `max_new` more."""
    rows, width = prompt_BxP.shape[:2]
    place = jnp.arange(width)
    position_BxP = jnp.where(place < length_B[:, None], place, -1)
    cache = init_cache(transformer.config, rows, width + max_new)
    vectors = prompt_BxP if prompt_BxP.ndim == 3 else transformer.embed(prompt_BxP)
    hidden_BxPxD, cache = transformer.decode_embedded(vectors, position_BxP, cache)
    return jnp.take_along_axis(hidden_BxPxD, (length_B - 1)[:, None, None], axis=1)[:, 0], cache


def _mark(seen_BxV: Array, tokens_BxT: Array) -> Array:
    return seen_BxV.at[jnp.arange(len(seen_BxV))[:, None], tokens_BxT].set(True)


def _at(x_BxV: Array, index_B: Array) -> Array:
    return jnp.take_along_axis(x_BxV, index_B[:, None], axis=-1)[:, 0]
