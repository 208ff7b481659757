"""Generation with a causal model: greedy search, sampling, beam search.

It runs on the device as one compiled program of fixed shapes, with cached keys and values. The result of a row depends
on its prompt, its key and the settings, not on padding, batch size or row order.
"""

from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from pydantic import Field, PositiveInt

from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import PADDING, Modality, Vocabulary
from jax_speechlm.models.transformer import Cache

COLDEST = 1e-5
"""Lower temperatures are computed as greedy search, because their inverse would overflow."""

_MOST = 1e6  # limit of settings that logits are multiplied or divided by, within the range of float32

Prompt = Int[Array, "batch prompt"] | Float[Array, "batch prompt dim"]
"""Token ids, or vectors in place of token embeddings (`Transformer.embed`)."""


@runtime_checkable
class Continues(Protocol):
    """A causal model: a transformer, or an attention decoder with what it reads.

    Only a transformer continues vectors (`Transformer.decode_embedded`).
    """

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Returns the cache of empty texts of at most `length` tokens."""

    def decode(
        self, tokens_BxT: Int[Array, "batch time"], position_BxT: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """Encodes the next tokens of each row (`Transformer.decode`)."""

    def logits(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Returns float32 logits of hidden states."""


class Sampling(Config):
    """Settings of sampling from the model's distribution, applied in this order.

    Attributes:
      repetition_penalty: positive logits of tokens that are already in the row are divided by it, negative ones
        multiplied (Keskar et al. 2019, section 4.1).
      temperature: divides the logits; below 0.00001 the most probable token is chosen (greedy search).
      top_k: keeps the k most probable tokens.
      top_p: keeps the smallest set of most probable tokens whose probability reaches p (Holtzman et al. 2020).
    """

    repetition_penalty: Annotated[float, Field(ge=1, le=_MOST, allow_inf_nan=False)] = 1.0
    temperature: Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)] = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


GREEDY = Sampling(temperature=0.0)


class Beam(Config):
    """Settings of beam search for the greatest log-probability / length^length_penalty.

    Attributes:
      size: continuations that are kept at every length, and returned.
      length_penalty: 0 ranks by probability, which favours short texts; 1 by the mean log-probability of a token.
    """

    size: PositiveInt = 4
    length_penalty: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] = 1.0


def method_of(sampling: Sampling, beam_size: int, length_penalty: float) -> Sampling | Beam:
    """Returns the decoding method of a command's options: beam search if the size is above 0, else sampling."""
    if beam_size < 0:
        raise ValueError(f"--beam-size must be 0 (no beam) or more, got {beam_size}")
    return Beam(size=beam_size, length_penalty=length_penalty) if beam_size else sampling


def check_counts(**counts: int) -> None:
    """Raises ValueError if one of the named options is not positive."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {count}")


class Continuations(NamedTuple):
    """Generated tokens.

    Attributes:
      tokens: ids, the last one of `Vocabulary.ends` if the text ended; padding after the last.
      length: number of tokens; less than the maximum if the text ended or the context was full.
      log_prob: log-probability in nats under the model's full distribution.
    """

    tokens: Int[Array, "*batch new"]
    length: Int[Array, "*batch"]
    log_prob: Float[Array, "*batch"]


def sample(
    model: Continues,
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
    """Continues every prompt by at most `max_new` tokens, until an end token or a full context.

    Args:
      prompt_BxP: prompts, starting with the boundary before a text; arbitrary beyond `length_B`.
      length_B: tokens of the prompts; at least 1.
      keys_B: one key a row; token n is drawn with fold_in(key, n).
      context: greatest number of tokens a row, with its prompt.
      modality: restricts new tokens to text or to units of speech; None for both.
    """
    limit_B = jnp.minimum(max_new, context - length_B)
    hidden_BxD, cache = _read_prompt(model, prompt_BxP, length_B, max_new)
    seen = None
    if settings.repetition_penalty != 1:
        seen = jnp.zeros((len(length_B), vocabulary.size), bool)
        if prompt_BxP.ndim == 2:
            inside = jnp.arange(prompt_BxP.shape[1]) < length_B[:, None]
            seen = _mark(seen, jnp.where(inside, prompt_BxP, PADDING))

    def choose(state: dict[str, Any]) -> dict[str, Any]:
        """Appends a token to every unfinished row."""
        logits_BxV = model.logits(state["hidden"])
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
        hidden, cache = model.decode(state["token"][:, None], position_B[:, None], state["cache"])
        return choose(state | {"hidden": hidden[:, 0], "cache": cache})

    state = {
        "step": jnp.int32(0),
        "hidden": hidden_BxD,
        "cache": cache,
        "tokens": jnp.full((len(length_B), max_new), PADDING, jnp.int32),
        "length": jnp.zeros_like(length_B, jnp.int32),
        "log_prob": jnp.zeros(len(length_B)),
        "seen": seen,
        "done": limit_B <= 0,
    }

    def unfinished(state: dict[str, Any]) -> Array:
        return (state["step"] < max_new) & ~jnp.all(state["done"])

    state = jax.lax.while_loop(unfinished, advance, choose(state))
    return Continuations(state["tokens"], state["length"], state["log_prob"])


def choose_tokens(
    logits_BxV: Float[Array, "batch vocab"],
    keys_B: Key[Array, " batch"],
    settings: Sampling,
    seen_BxV: Bool[Array, "batch vocab"] | None = None,
) -> Int[Array, " batch"]:
    """Chooses one token per row among the tokens with a finite logit.

    Args:
      logits_BxV: logits, -inf for excluded tokens.
      seen_BxV: True for tokens that are already in the row; required for a repetition penalty.
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
        before = jnp.cumsum(share, axis=-1) - share  # probability of all more probable tokens
        kept = (before < settings.top_p) | (jnp.arange(share.shape[-1]) == 0)
        logits_BxV = jnp.where(kept, logits_BxV, -jnp.inf)
    chosen_B = jax.vmap(jax.random.categorical)(keys_B, logits_BxV)
    return (chosen_B if order is None else _at(order, chosen_B)).astype(jnp.int32)


def beam_search(
    model: Continues,
    vocabulary: Vocabulary,
    prompt_BxP: Prompt,
    length_B: Int[Array, " batch"],
    settings: Beam,
    *,
    max_new: int,
    context: int | Int[Array, " batch"],
    modality: Modality | None = None,
) -> Continuations:
    """Searches for the `size` best continuations of every prompt; arguments as of `sample`.

    Texts that end and texts that are cut at `max_new` tokens or at a full context compete. With a beam as wide as the
    number of possible continuations the search is exhaustive. A row is finished when no open text can exceed the worst
    kept one.

    Returns:
      Continuations [batch, size], best first.
    """
    batch, size = len(length_B), settings.size
    limit_B = jnp.minimum(max_new, context - length_B)
    hidden_BxD, cache = _read_prompt(model, prompt_BxP, length_B, max_new)

    def score_of(log_prob: Array, length: Array) -> Array:
        return log_prob / length**settings.length_penalty

    def extend(state: dict[str, Any]) -> dict[str, Any]:
        """Extends every open text by one token."""
        step, open_BxK = state["step"], state["open"]
        log_probs = jax.nn.log_softmax(model.logits(state["hidden"])).reshape(batch, size, -1)
        log_probs = open_BxK[..., None] + jnp.where(vocabulary.may_follow(modality), log_probs, -jnp.inf)
        length = step + 1

        def keep(kept: dict[str, Array], log_prob: Array, tokens: Array) -> dict[str, Array]:
            """Returns the best of the kept texts and of new ones of this length."""
            new = {"score": score_of(log_prob, length), "log_prob": log_prob, "tokens": tokens}
            new["length"] = jnp.full(log_prob.shape, length)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), kept, new)
            _, best = jax.lax.top_k(both["score"], size)
            return jax.tree.map(lambda x: jax.vmap(lambda row, index: row[index])(x, best), both)

        kept = state["kept"]
        for end in vocabulary.ends:
            kept = keep(kept, log_probs[..., end], state["tokens"].at[:, :, step].set(end))

        continued = log_probs.at[..., np.array(vocabulary.ends)].set(-jnp.inf).reshape(batch, -1)
        open_BxK, index_BxK = jax.lax.top_k(continued, size)
        parent_BxK, token_BxK = jnp.divmod(index_BxK, log_probs.shape[-1])
        tokens = jnp.take_along_axis(state["tokens"], parent_BxK[..., None], axis=1).at[:, :, step].set(token_BxK)
        is_full = (length >= limit_B)[:, None]
        kept = keep(kept, jnp.where(is_full, open_BxK, -jnp.inf), tokens)
        return state | {
            "step": length,
            "open": jnp.where(is_full, -jnp.inf, open_BxK),
            "tokens": tokens,
            "parent": parent_BxK,
            "token": token_BxK,
            "kept": kept,
        }

    def advance(state: dict[str, Any]) -> dict[str, Any]:
        row = (jnp.arange(batch)[:, None] * size + state["parent"]).reshape(-1)
        cache = jax.tree.map(lambda x: x[:, row], state["cache"])
        position = jnp.repeat(length_B, size) + state["step"] - 1
        hidden, cache = model.decode(state["token"].reshape(-1, 1), position[:, None], cache)
        return extend(state | {"hidden": hidden[:, 0], "cache": cache})

    def unfinished(state: dict[str, Any]) -> Array:
        # Log-probabilities never rise, and the divisor is at most its value at the full length.
        best_open = score_of(state["open"].max(-1), jnp.maximum(limit_B, 1))
        worst_kept = state["kept"]["score"].min(-1)
        return (state["step"] < max_new) & jnp.any((best_open > worst_kept) & (best_open > -jnp.inf))

    first = jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf)  # start from a single text
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
    kept = jax.lax.while_loop(unfinished, advance, extend(state))["kept"]
    return Continuations(kept["tokens"], kept["length"], kept["log_prob"])


def _read_prompt(model: Continues, prompt_BxP: Array, length_B: Array, max_new: int) -> tuple[Array, Cache]:
    """Encodes prompts. Returns the last hidden states, and a cache with room for `max_new` more tokens."""
    rows, width = prompt_BxP.shape[:2]
    index = jnp.arange(width)
    position_BxP = jnp.where(index < length_B[:, None], index, -1)
    cache = model.empty_cache(rows, width + max_new)
    decode = model.decode if prompt_BxP.ndim == 2 else model.decode_embedded
    hidden_BxPxD, cache = decode(prompt_BxP, position_BxP, cache)
    return jnp.take_along_axis(hidden_BxPxD, (length_B - 1)[:, None, None], axis=1)[:, 0], cache


def _mark(seen_BxV: Array, tokens_BxT: Array) -> Array:
    return seen_BxV.at[jnp.arange(len(seen_BxV))[:, None], tokens_BxT].set(True)


def _at(x_BxV: Array, index_B: Array) -> Array:
    return jnp.take_along_axis(x_BxV, index_B[:, None], axis=-1)[:, 0]
