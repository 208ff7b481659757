"""Greedy search of transducers, in steps over pieces of an utterance of any length.

Every row has its own position: at each iteration it either emits a token or moves on, so a batch takes as many
iterations as its longest row has frames and tokens, whatever the others do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.models.transducer import PredictorState, TransducerModel

MAX_SYMBOLS = 10
"""Tokens of a frame after which the search moves on to the next, as in transformers."""


class SearchState(NamedTuple):
    """State of the search between two pieces of an utterance.

    Attributes:
      predictor: after all tokens so far.
      skip: frames at the beginning of the next piece that a duration of TDT passes over.
    """

    predictor: PredictorState
    skip: Int[Array, " batch"]


class Emissions(NamedTuple):
    """Tokens that were emitted at each frame.

    Attributes:
      tokens: in order; 0 where there is none.
      log_probs: log-probability of each token, in TDT with its duration, in nats; 0 where there is none.
      durations: frames from each token to the next symbol; 0 in RNN-T.
      blank: log-probability of the blank after them; 0 in frames that were passed over, or have `max_symbols`.
    """

    tokens: Int[Array, "batch time symbols"]
    log_probs: Float[Array, "batch time symbols"]
    durations: Int[Array, "batch time symbols"]
    blank: Float[Array, "batch time"]


def init_state(model: TransducerModel, batch: int) -> SearchState:
    """Returns the state before the first frame of an utterance."""
    return SearchState(model.init_state(batch), jnp.zeros(batch, jnp.int32))


def step(
    model: TransducerModel,
    state: SearchState,
    encoder_BxTxJ: Float[Array, "batch time dim"],
    length_B: Int[Array, " batch"],
    durations: tuple[int, ...] = (),
    max_symbols: int = MAX_SYMBOLS,
) -> tuple[SearchState, Emissions]:
    """Decodes the next frames of each row. Any cut of an utterance into pieces gives the same tokens.

    Args:
      encoder_BxTxJ: `TransducerModel.project` of the frames.
      length_B: frames of each row in this piece; others are ignored.
      durations: those of the model; () for RNN-T.
      max_symbols: tokens of a frame after which the search moves on.
    """
    batch, num_frames = encoder_BxTxJ.shape[:2]
    slots = batch, num_frames, max_symbols
    emissions = Emissions(
        jnp.zeros(slots, jnp.int32), jnp.zeros(slots), jnp.zeros(slots, jnp.int32), jnp.zeros(slots[:2])
    )
    if not num_frames:
        return state, emissions
    rows = jnp.arange(batch)

    def is_left(carry):
        time_B = carry[0]
        return jnp.any(time_B < length_B)

    def advance(carry):
        time_B, count_B, predictor, emissions = carry
        is_active = time_B < length_B
        frame_BxJ = encoder_BxTxJ[rows, jnp.minimum(time_B, num_frames - 1)]
        log_token_BxV, log_duration_BxD = model.log_probs(frame_BxJ, predictor.output)
        token_B, log_prob_B = jnp.argmax(log_token_BxV, axis=-1), jnp.max(log_token_BxV, axis=-1)
        is_blank = token_B == BLANK
        duration_B = is_blank.astype(jnp.int32)
        if durations:
            may_last = ~is_blank[:, None] | (jnp.array(durations) > 0)  # a blank moves on
            log_duration_BxD = jnp.where(may_last, log_duration_BxD, -jnp.inf)
            duration_B = jnp.array(durations, jnp.int32)[jnp.argmax(log_duration_BxD, axis=-1)]
            log_prob_B += jnp.max(log_duration_BxD, axis=-1)
        is_token = is_active & ~is_blank
        place = rows, jnp.where(is_token, time_B, num_frames), count_B  # places outside are dropped
        emissions = Emissions(
            emissions.tokens.at[place].set(token_B, mode="drop"),
            emissions.log_probs.at[place].set(log_prob_B, mode="drop"),
            emissions.durations.at[place].set(duration_B, mode="drop"),
            emissions.blank.at[rows, jnp.where(is_active & is_blank, time_B, num_frames)].set(log_prob_B, mode="drop"),
        )
        predictor = model.step(predictor, jnp.where(is_token, token_B, BLANK))
        count_B = count_B + 1
        move_B = jnp.where(count_B >= max_symbols, jnp.maximum(duration_B, 1), duration_B) * is_active
        return time_B + move_B, jnp.where(move_B > 0, 0, count_B), predictor, emissions

    start = state.skip, jnp.zeros(batch, jnp.int32), state.predictor, emissions
    time_B, _, predictor, emissions = jax.lax.while_loop(is_left, advance, start)
    return SearchState(predictor, time_B - length_B), emissions
