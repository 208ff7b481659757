"""Generation with an attention decoder: greedy search and sampling, with Whisper's rules of timestamps.

It runs on the device as one compiled program of fixed shapes, with cached keys and values. The result of a row depends
on its speech, its prompt, its temperature and its key, not on padding, batch size or row order.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_speechlm.core.vocabulary import PADDING
from jax_speechlm.models.attention_decoder import AttentionDecoder, Source, init_cache
from jax_speechlm.objectives.asr.whisper_tokens import TIMESTAMPS

_FIRST_TIMES = 51
"""Times that may begin a text: up to 1 s, as OpenAI's `max_initial_timestamp`."""


class Rules(NamedTuple):
    """What may be generated.

    Attributes:
      end: the id that ends a text.
      allowed: ids that may be generated at all.
      allowed_first: ids that may begin a text.
      first_timestamp: the id of 0 seconds, for a text with times: they come in pairs, do not decrease, and begin it
        (Radford et al. 2022, section 2.3). None for a text without.
      no_speech: id whose probability in place of a text is returned, or None.
    """

    end: int
    allowed: Bool[np.ndarray, " vocab"]
    allowed_first: Bool[np.ndarray, " vocab"]
    first_timestamp: int | None = None
    no_speech: int | None = None


class Times(NamedTuple):
    """What the ids of texts so far imply for times that may follow.

    Attributes:
      is_time, was_time: whether the last id and the one before are times; at the start the latter holds.
      least: least time that may follow, in steps.
    """

    is_time: Bool[Array, " batch"]
    was_time: Bool[Array, " batch"]
    least: Int[Array, " batch"]

    @classmethod
    def of(cls, rows: int) -> "Times":
        """Returns the state of empty texts."""
        return cls(jnp.zeros(rows, bool), jnp.ones(rows, bool), jnp.zeros(rows, jnp.int32))

    def after(self, token_B: Int[Array, " batch"], first: int | None, at_start: Bool[Array, ""]) -> "Times":
        """Returns the state after another id, the first `at_start`; `first` is `Rules.first_timestamp`."""
        if first is None:
            return self
        is_time = (token_B >= first) & (token_B < first + TIMESTAMPS)
        # After the time that ends a stretch the next may begin at it; one that ends a stretch is later than its
        # beginning.
        begins = is_time & (self.is_time | at_start)
        least = jnp.where(is_time, token_B - first + begins, self.least)
        return Times(is_time, self.is_time | at_start, least)


class Generated(NamedTuple):
    """Generated texts.

    Attributes:
      tokens: ids without the end, then padding.
      length: number of tokens, without the end.
      log_prob: log-probability in nats under the distribution of allowed ids, with the end's.
      ended: whether the end was generated, and not the most tokens.
      no_speech: probability of `Rules.no_speech` in place of a text; 0 without it.
    """

    tokens: Int[Array, "batch new"]
    length: Int[Array, " batch"]
    log_prob: Float[Array, " batch"]
    ended: Bool[Array, " batch"]
    no_speech: Float[Array, " batch"]


def generate(
    decoder: AttentionDecoder,
    source: Source,
    prompt_BxP: Int[Array, "batch prompt"],
    prompt_length_B: Int[Array, " batch"],
    start_B: Int[Array, " batch"],
    temperature_B: Float[Array, " batch"],
    keys_B: Key[Array, " batch"],
    rules: Rules,
    *,
    max_new: int,
    limit_B: Int[Array, " batch"],
) -> Generated:
    """Generates the text of one utterance a row.

    Args:
      prompt_BxP: ids before the text; arbitrary beyond `prompt_length_B`.
      start_B: place in the prompt after which there may be no speech: of Whisper's <|startoftranscript|>.
      temperature_B: 0 takes the most probable id, above it ids are drawn.
      keys_B: one key a row; token n is drawn with fold_in(key, n).
      max_new: most ids of any row, with the end.
      limit_B: most ids of each row; rows of 0 are left out.
    """
    rows, width = prompt_BxP.shape
    index = jnp.arange(width)
    position_BxP = jnp.where(index < prompt_length_B[:, None], index, -1)
    cache = init_cache(decoder.config, rows, min(width + max_new, decoder.config.max_tokens))
    limit_B = jnp.minimum(jnp.minimum(limit_B, max_new), decoder.config.max_tokens - prompt_length_B)
    hidden_BxPxD, cache = decoder.decode(prompt_BxP, position_BxP, cache, source)

    def hidden_at(place_B: Array) -> Array:
        return jnp.take_along_axis(hidden_BxPxD, place_B[:, None, None], axis=1)[:, 0]

    no_speech_B = jnp.zeros(rows)
    if rules.no_speech is not None:
        no_speech_B = jax.nn.softmax(decoder.logits(hidden_at(start_B)))[:, rules.no_speech]

    def choose(state: dict[str, Any]) -> dict[str, Any]:
        """Appends an id to every unfinished row."""
        step, done = state["step"], state["done"]
        logits_BxV = allowed_logits(decoder.logits(state["hidden"]), rules, step == 0, state["times"])
        log_probs_BxV = jax.nn.log_softmax(logits_BxV)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_B)
        scaled = logits_BxV / jnp.where(temperature_B > 0, temperature_B, 1)[:, None]
        drawn_B = jax.vmap(jax.random.categorical)(keys, scaled)
        token_B = jnp.where(temperature_B > 0, drawn_B, jnp.argmax(logits_BxV, axis=-1)).astype(jnp.int32)
        log_prob_B = jnp.take_along_axis(log_probs_BxV, token_B[:, None], axis=1)[:, 0]
        ends = ~done & (token_B == rules.end)
        kept_B = jnp.where(done | ends, PADDING, token_B)
        length_B = state["length"] + (~done & ~ends)
        return state | {
            "times": state["times"].after(kept_B, rules.first_timestamp, step == 0),
            "step": step + 1,
            "token": kept_B,
            "tokens": jax.lax.dynamic_update_index_in_dim(state["tokens"], kept_B, step, axis=1),
            "length": length_B,
            "log_prob": state["log_prob"] + jnp.where(done, 0, log_prob_B),
            "ended": state["ended"] | ends,
            "done": done | ends | (length_B >= limit_B),
        }

    def advance(state: dict[str, Any]) -> dict[str, Any]:
        position_B = jnp.where(state["done"], -1, prompt_length_B + state["step"] - 1)
        hidden, cache = decoder.decode(state["token"][:, None], position_B[:, None], state["cache"], source)
        return choose(state | {"hidden": hidden[:, 0], "cache": cache})

    no = jnp.zeros(rows, bool)
    state = {
        "step": jnp.int32(0),
        "hidden": hidden_at(prompt_length_B - 1),
        "cache": cache,
        "tokens": jnp.full((rows, max_new), PADDING, jnp.int32),
        "length": jnp.zeros(rows, jnp.int32),
        "log_prob": jnp.zeros(rows),
        "ended": no,
        "done": limit_B <= 0,
        "times": Times.of(rows),
    }

    def unfinished(state: dict[str, Any]) -> Array:
        return (state["step"] < max_new) & ~jnp.all(state["done"])

    state = jax.lax.while_loop(unfinished, advance, choose(state))
    return Generated(state["tokens"], state["length"], state["log_prob"], state["ended"], no_speech_B)


def allowed_logits(
    logits_BxV: Float[Array, "batch vocab"], rules: Rules, at_start: Bool[Array, ""], times: Times
) -> Float[Array, "batch vocab"]:
    """Returns logits with -inf for ids that may not follow, or not begin a text `at_start`."""
    allowed = jnp.asarray(rules.allowed) & (jnp.asarray(rules.allowed_first) | ~at_start)
    logits_BxV = jnp.where(allowed, logits_BxV, -jnp.inf)
    if rules.first_timestamp is None:
        return logits_BxV
    return _with_times(logits_BxV, times, at_start, rules.first_timestamp, rules.end)


def _with_times(logits_BxV: Array, times: Times, at_start: Array, first: int, end: int) -> Float[Array, "batch vocab"]:
    """Returns the logits of a text with times, -inf for what may not follow.

    The rules are those of OpenAI's `ApplyTimestampRules`.
    """
    ids = jnp.arange(logits_BxV.shape[1])
    is_time, is_text = (ids >= first) & (ids < first + TIMESTAMPS), ids != end
    is_text &= ~is_time
    # A time after a time begins a stretch of text; a single one ends it, and another one or the end follows.
    opened, closed = times.is_time & times.was_time, times.is_time & ~times.was_time
    wrong = (opened[:, None] & is_time) | (closed[:, None] & is_text)
    wrong |= is_time & (ids - first < times.least[:, None])
    wrong |= at_start & (~is_time | (ids >= first + _FIRST_TIMES))
    logits_BxV = jnp.where(wrong, -jnp.inf, logits_BxV)
    # Where a time is more probable than any other id, it is one of them.
    log_probs = jax.nn.log_softmax(logits_BxV)
    times_B = jax.nn.logsumexp(jnp.where(is_time, log_probs, -jnp.inf), axis=-1)
    others_B = jnp.max(jnp.where(is_time, -jnp.inf, log_probs), axis=-1)
    return jnp.where((times_B > others_B)[:, None] & ~is_time, -jnp.inf, logits_BxV)
