"""The steps of a beam search that run on the device: the attention decoder, and CTC prefix scores beside it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.core.segments import Segments
from jax_speechlm.core.vocabulary import PADDING
from jax_speechlm.decoding.attention import prefix_scores
from jax_speechlm.decoding.attention.generate import Rules, Times, allowed_logits
from jax_speechlm.decoding.attention.prefix_scores import Prefixes
from jax_speechlm.models.attention_decoder import Cache, Source, init_cache
from jax_speechlm.models.encoder_decoder import EncoderDecoder


class State(NamedTuple):
    """Prefixes of utterances, those of an utterance one after the other: `prefixes` in all, of one length.

    Attributes:
      source, cache: what the decoder reads of the frames, of each utterance, and of the tokens.
      position: of the next token of each prefix.
      is_first: whether the prefixes are empty.
      times: of prefixes with times in them.
      no_speech: probability of `Rules.no_speech` in place of a text; 0 without it.
      ctc_log_probs, num_frames, ctc: posteriors of the CTC head, valid frames of them, and alignments of the prefixes;
        None without a head.
    """

    source: Source
    cache: Cache
    position: Int[Array, " prefixes"]
    is_first: Bool[Array, ""]
    times: Times
    no_speech: Float[Array, " batch"]
    ctc_log_probs: Float[Array, "batch time vocab"] | None
    num_frames: Int[Array, " batch"]
    ctc: Prefixes | None


class Extensions(NamedTuple):
    """What may follow each prefix, in nats.

    Attributes:
      tokens: ids of the most probable tokens by the decoder.
      attention: their log-probabilities; -inf for ids that may not follow.
      ctc: log-probability by the CTC head of transcripts that begin with the prefix and the token; 0 without a head.
      end_attention: log-probability of the end.
      end_ctc: log-probability by the CTC head of the prefix as the whole transcript; 0 without a head.
    """

    tokens: Int[Array, "prefixes width"]
    attention: Float[Array, "prefixes width"]
    ctc: Float[Array, "prefixes width"]
    end_attention: Float[Array, " prefixes"]
    end_ctc: Float[Array, " prefixes"]


def start(
    model: EncoderDecoder,
    frames_BxTxD: Float[Array, "batch time dim"],
    length_B: Int[Array, " batch"],
    prompt_BxP: Int[Array, "batch prompt"],
    prompt_length_B: Int[Array, " batch"],
    start_B: Int[Array, " batch"],
    rules: Rules,
    *,
    size: int,
    width: int,
    has_ctc: bool,
) -> tuple[State, Extensions]:
    """Starts a search with `size` empty prefixes of each utterance, of which `width` extensions are scored.

    Args:
      frames_BxTxD: the encoder's frames, at least one, which may be padding.
      prompt_BxP: ids before the texts; arbitrary beyond `prompt_length_B`.
      start_B: place in the prompt after which there may be no speech.
    """
    batch, index = len(prompt_BxP), jnp.arange(prompt_BxP.shape[1])
    decoder = model.decoder
    source = model.read(frames_BxTxD, Segments.of(length_B))
    position = jnp.where(index < prompt_length_B[:, None], index, -1)
    cache = init_cache(decoder.config, batch, decoder.config.max_tokens)
    hidden_BxPxD, cache = decoder.decode(prompt_BxP, position, cache, source)

    def hidden_at(place_B: Array) -> Array:
        return jnp.take_along_axis(hidden_BxPxD, place_B[:, None, None], axis=1)[:, 0]

    no_speech_B = jnp.zeros(batch)
    if rules.no_speech is not None:
        no_speech_B = jax.nn.softmax(decoder.logits(hidden_at(start_B)))[:, rules.no_speech]
    ctc_log_probs = ctc = None
    if has_ctc:
        ctc_log_probs = jax.nn.log_softmax(model.ctc_logits(frames_BxTxD).astype(jnp.float32))
        ctc = prefix_scores.empty(ctc_log_probs, size)
    cache = jax.tree.map(lambda x: jnp.repeat(x, size, axis=1), cache)
    counters = jnp.repeat(prompt_length_B, size), jnp.array(True), Times.of(batch * size)
    state = State(source, cache, *counters, no_speech_B, ctc_log_probs, length_B, ctc)
    return state, _extensions(model, state, jnp.repeat(hidden_at(prompt_length_B - 1), size, axis=0), rules, width)


def advance(
    model: EncoderDecoder,
    state: State,
    origin_N: Int[Array, " prefixes"],
    tokens_N: Int[Array, " prefixes"],
    rules: Rules,
    *,
    width: int,
) -> tuple[State, Extensions]:
    """Moves prefix `origin`, of the same utterance, to each place and extends it by a token; padding ends a place."""
    cache = jax.tree.map(lambda x: x[:, origin_N], state.cache)
    position_N = jnp.where(tokens_N == PADDING, -1, state.position)
    hidden, cache = model.decoder.decode(tokens_N[:, None], position_N[:, None], cache, state.source)
    times = Times(*(x[origin_N] for x in state.times)).after(tokens_N, rules.first_timestamp, state.is_first)
    ctc = state.ctc
    if ctc is not None:
        batch, size = ctc.last.shape
        ctc = Prefixes(*(x.reshape(-1, *x.shape[2:])[origin_N].reshape(x.shape) for x in ctc))
        ctc = prefix_scores.extend(state.ctc_log_probs, ctc, tokens_N.reshape(batch, size))
    state = state._replace(
        cache=cache, position=state.position + 1, is_first=jnp.array(False), times=times, ctc=ctc
    )  # fmt: skip
    return state, _extensions(model, state, hidden[:, 0], rules, width)


def _extensions(
    model: EncoderDecoder, state: State, hidden_NxD: Float[Array, "prefixes dim"], rules: Rules, width: int
) -> Extensions:
    logits_NxV = allowed_logits(model.decoder.logits(hidden_NxD), rules, state.is_first, state.times)
    log_probs_NxV = jax.nn.log_softmax(logits_NxV)
    is_end = jnp.arange(log_probs_NxV.shape[1]) == rules.end
    attention_NxC, tokens_NxC = jax.lax.top_k(jnp.where(is_end, -jnp.inf, log_probs_NxV), width)
    end_attention_N = log_probs_NxV[:, rules.end]
    ctc_NxC, end_ctc_N = jnp.zeros(tokens_NxC.shape), jnp.zeros(len(tokens_NxC))
    if state.ctc is not None:
        by_row = tokens_NxC.reshape(*state.ctc.last.shape, width)
        # An id that may not follow need not be one of the head's.
        by_row = jnp.clip(by_row, 1, state.ctc_log_probs.shape[-1] - 1)
        ctc_NxC = prefix_scores.scores(state.ctc_log_probs, state.num_frames, state.ctc, by_row).reshape(-1, width)
        end_ctc_N = prefix_scores.ends(state.num_frames, state.ctc).reshape(-1)
    return Extensions(tokens_NxC, attention_NxC, ctc_NxC, end_attention_N, end_ctc_N)
