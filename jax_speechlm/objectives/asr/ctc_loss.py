"""The CTC loss of packed rows: several utterances in a row, one scan over its frames (Graves et al. 2006).

A frame belongs to one utterance, so the scan holds the states of one utterance at a time and starts anew at the first
frame of each. The gradient is the posterior of every token, from a second scan backwards in time, instead of the
derivative of the first: it needs a third of the exponentials.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.core.segments import Segments
from jax_speechlm.parallel.mesh import shard_batch_dim

_IMPOSSIBLE = -1e30  # logarithm of probability 0; finite, so that no difference of two is NaN


def packed_ctc_loss(
    logits_BxTxV: Float[Array, "batch time vocab"],
    segment_BxT: Int[Array, "batch time"],
    tokens_BxNxU: Int[Array, "batch utterances tokens"],
    token_length_BxN: Int[Array, "batch utterances"],
) -> tuple[Float[Array, "batch utterances"], Bool[Array, "batch utterances"]]:
    """Computes the negative log-likelihood of each utterance's tokens, summed over all alignments.

    Args:
      logits_BxTxV: unnormalised; id 0 is the blank.
      segment_BxT: utterance of the frame, from 1; 0 is padding. The frames of an utterance are contiguous.
      tokens_BxNxU: ids 1..V-1 of each utterance; ids from `token_length_BxN` on are ignored.
      token_length_BxN: 0 is allowed; the only alignment is then all blanks.

    Returns:
      The losses in nats, never negative, and a mask of feasible utterances. An utterance with too few frames for its
      tokens and the blanks between equal neighbours, or without frames, has no alignment: its loss and gradient are 0.
    """
    own_BxNxT = _own(segment_BxT, tokens_BxNxU.shape[1])
    feasible_BxN = is_feasible(own_BxNxT.sum(-1), tokens_BxNxU, token_length_BxN)

    tokens_BxTxU = jnp.take_along_axis(tokens_BxNxU, jnp.maximum(segment_BxT - 1, 0)[..., None], axis=1)
    log_p_BxTxV = jax.nn.log_softmax(logits_BxTxV.astype(jnp.float32))
    token_BxTxU = jnp.take_along_axis(log_p_BxTxV, jnp.clip(tokens_BxTxU, 0, log_p_BxTxV.shape[-1] - 1), axis=-1)
    repeats_BxTxU = jnp.pad(tokens_BxTxU[..., 1:] == tokens_BxTxU[..., :-1], ((0, 0), (0, 0), (1, 0)))
    rows = log_p_BxTxV[..., BLANK], token_BxTxU, segment_BxT, repeats_BxTxU
    return _losses(rows, own_BxNxT, token_length_BxN, feasible_BxN), feasible_BxN


def packed_forward_sum(
    blank_BxT: Float[Array, "batch time"],
    token_BxTxU: Float[Array, "batch time tokens"],
    segment_BxT: Int[Array, "batch time"],
    token_length_BxN: Int[Array, "batch utterances"],
) -> tuple[Float[Array, "batch utterances"], Bool[Array, "batch utterances"]]:
    """Computes `packed_ctc_loss` of tokens that are all different and have log-probabilities of their own.

    Args:
      blank_BxT, token_BxTxU: log-probabilities of the blank and of each token of the frame's utterance.

    Returns:
      The losses in nats and a mask of feasible utterances, which have at least as many frames as tokens.
    """
    own_BxNxT = _own(segment_BxT, token_length_BxN.shape[1])
    num_frames = own_BxNxT.sum(-1)
    feasible_BxN = (num_frames > 0) & (num_frames >= token_length_BxN)
    rows = blank_BxT, token_BxTxU, segment_BxT, jnp.zeros(token_BxTxU.shape, bool)
    return _losses(rows, own_BxNxT, token_length_BxN, feasible_BxN), feasible_BxN


def _own(segment_BxT: Array, num_utterances: int) -> Bool[Array, "batch utterances time"]:
    """Returns whether a frame belongs to an utterance."""
    return segment_BxT[:, None] == jnp.arange(1, num_utterances + 1)[:, None]


def _losses(rows: tuple[Array, ...], own_BxNxT: Array, token_length_BxN: Array, feasible_BxN: Array):
    """Returns the loss of every utterance, [B, N], from the first arguments of `_log_likelihood`."""
    segment_BxT = rows[2]
    length_BxT = jnp.take_along_axis(token_length_BxN, jnp.maximum(segment_BxT - 1, 0), axis=1)
    total_BxT = _log_likelihood(*rows, length_BxT)
    last_BxN = jnp.max(jnp.where(own_BxNxT, jnp.arange(segment_BxT.shape[1]), 0), axis=-1)
    total_BxN = jnp.take_along_axis(total_BxT, last_BxN, axis=1)
    # Selected, so that no gradient reaches an utterance without an alignment. Rounding can make a loss -1e-6.
    return jnp.where(feasible_BxN, jnp.maximum(-total_BxN, 0), 0)


def ctc_loss(
    logits_BxTxV: Float[Array, "batch time vocab"],
    length_B: Int[Array, " batch"],
    tokens_BxU: Int[Array, "batch tokens"],
    token_length_B: Int[Array, " batch"],
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
    """Computes `packed_ctc_loss` of rows of one utterance, which have `length_B` frames."""
    segment_BxT = Segments.of(length_B).segment(logits_BxTxV.shape[1])
    losses = packed_ctc_loss(logits_BxTxV, segment_BxT, tokens_BxU[:, None], token_length_B[:, None])
    return tuple(x[:, 0] for x in losses)


def is_feasible(
    length: Int[Array, "*rows"], tokens: Int[Array, "*rows tokens"], token_length: Int[Array, "*rows"]
) -> Bool[Array, "*rows"]:
    """Returns whether there are frames for all tokens and the blanks between equal neighbours, and at least one."""
    inside = jnp.arange(1, tokens.shape[-1]) < token_length[..., None]
    repeats = jnp.sum((tokens[..., 1:] == tokens[..., :-1]) & inside, axis=-1)
    return (length > 0) & (length >= token_length + repeats)


@jax.custom_vjp
def _log_likelihood(blank_BxT, token_BxTxU, segment_BxT, repeats_BxTxU, length_BxT):
    """Returns at every frame the log-likelihood of its utterance's tokens given the frames so far, [B, T].

    Args:
      blank_BxT, token_BxTxU: log-probabilities of the blank and of each token of the frame's utterance.
      segment_BxT: utterance of the frame.
      repeats_BxTxU: whether a token equals the one before it.
      length_BxT: tokens of the frame's utterance.
    """
    return _forward_scan(blank_BxT, token_BxTxU, segment_BxT, repeats_BxTxU, length_BxT)[0]


def _forward_scan(blank_BxT, token_BxTxU, segment_BxT, repeats_BxTxU, length_BxT):
    """Returns the log-likelihoods [B, T], and log forward probabilities of all blanks and tokens, [T, B, U + 1 and U].

    Those of a frame are relative to the frame's largest, because float32 would round the logarithms of the tiny
    probabilities of long utterances to 1e-4.
    """
    first_BxT = jnp.diff(segment_BxT, axis=1, prepend=-1) != 0
    no_blank, no_token = _nothing(token_BxTxU)

    def step(before, frame):
        blank, token, first, repeats, length = frame
        in_blank, in_token, scale = before  # [B, U + 1] and [B, U]: blank u precedes token u
        scale = jnp.where(first, 0, scale)
        first = first[:, None]
        in_blank = jnp.where(first, no_blank.at[:, 0].set(0), in_blank)
        in_token = jnp.where(first, no_token, in_token)
        # A token follows the blank before it, or the token before that if it is another one.
        entered = _log_add(in_blank, _shift(in_token))
        next_token = token + _log_add(in_token, jnp.where(repeats, in_blank[:, :-1], entered[:, :-1]))
        next_blank = blank[:, None] + entered
        next_blank, next_token, largest = _relative(next_blank, next_token)
        scale = scale + largest
        last = _is_last_blank(next_blank, length)
        ends = (jnp.max(jnp.where(last, x, _IMPOSSIBLE), axis=-1) for x in (next_blank, _shift(next_token)))
        return (next_blank, next_token, scale), (scale + _log_add(*ends), next_blank, next_token)

    frames = (blank_BxT, token_BxTxU, first_BxT, repeats_BxTxU, length_BxT)
    start = no_blank, no_token, jnp.zeros_like(blank_BxT[:, 0])
    _, (total_TxB, *inside) = jax.lax.scan(step, start, jax.tree.map(_time_first, frames))
    return total_TxB.T, inside


def _forward(blank_BxT, token_BxTxU, segment_BxT, repeats_BxTxU, length_BxT):
    inputs = blank_BxT, token_BxTxU, segment_BxT, repeats_BxTxU, length_BxT
    total_BxT, inside = _forward_scan(*inputs)
    return total_BxT, (*inputs, *inside)


def _backward(saved, gradient_BxT):
    """Returns the posteriors of tokens, and of the blank as their complement, times the gradient.

    The gradient is that of an utterance's last frame: it must be 0 at all others.
    """
    blank_BxT, token_BxTxU, segment_BxT, repeats_BxTxU, length_BxT, in_blank_TxBxU, in_token_TxBxU = saved
    last_BxT = jnp.diff(segment_BxT, axis=1, append=-1) != 0
    no_blank, no_token = _nothing(token_BxTxU)
    no_repeat = jnp.zeros_like(repeats_BxTxU[:, 0, :1])

    def step(after, frame):
        blank, token, last, repeats, length, in_blank, in_token, gradient = frame
        from_blank, from_token, weight = after  # log-probabilities of all frames after this one
        weight = jnp.where(last, gradient, weight)
        last = last[:, None]
        ends = jnp.where(_is_last_blank(from_blank, length), 0, _IMPOSSIBLE)
        from_blank = jnp.where(last, ends, from_blank)
        from_token = jnp.where(last, ends[:, 1:], from_token)
        through_blank, through_token, _ = _relative(in_blank + from_blank, in_token + from_token)
        posterior = jnp.exp(through_token)
        # The largest of the sum's terms is 1, but in an utterance without an alignment all are 0.
        share = weight / jnp.maximum(posterior.sum(-1) + jnp.exp(through_blank).sum(-1), 0.5)
        posterior = posterior * share[:, None]
        by_token, by_blank = token + from_token, blank[:, None] + from_blank  # this frame's symbol included
        from_blank = _log_add(by_blank, jnp.concatenate([by_token, no_token[:, :1]], axis=1))
        same = jnp.concatenate([repeats[:, 1:], no_repeat], axis=1)
        from_token = _log_add(by_token, jnp.where(same, by_blank[:, 1:], from_blank[:, 1:]))
        from_blank, from_token, _ = _relative(from_blank, from_token)
        return (from_blank, from_token, weight), (posterior, weight - posterior.sum(-1))

    by_time = jax.tree.map(_time_first, (blank_BxT, token_BxTxU, last_BxT, repeats_BxTxU, length_BxT))
    frames = (*by_time, in_blank_TxBxU, in_token_TxBxU, _time_first(gradient_BxT))
    start = no_blank, no_token, jnp.zeros_like(blank_BxT[:, 0])
    _, (token_TxBxU, blank_TxB) = jax.lax.scan(step, start, frames, reverse=True)
    return blank_TxB.T, jnp.moveaxis(token_TxBxU, 0, 1), None, None, None


_log_likelihood.defvjp(_forward, _backward)


def _relative(blanks, tokens):
    """Returns log-probabilities less the largest of a row, and that; an impossible row is returned as it is."""
    largest = jnp.maximum(blanks.max(-1), tokens.max(-1, initial=_IMPOSSIBLE))
    largest = jnp.where(largest > 0.5 * _IMPOSSIBLE, largest, 0)
    return *(jnp.maximum(x - largest[:, None], _IMPOSSIBLE) for x in (blanks, tokens)), largest


def _nothing(token_BxTxU):
    """Returns log-probabilities 0 of the blanks [B, U + 1] and the tokens [B, U]."""
    batch, _, tokens = token_BxTxU.shape
    return jnp.full((batch, tokens + 1), _IMPOSSIBLE), jnp.full((batch, tokens), _IMPOSSIBLE)


def _is_last_blank(blanks, length):
    """Returns True at the blank after the last token, [B, U + 1]."""
    return jnp.arange(blanks.shape[-1]) == length[:, None]


def _shift(in_token):
    """Returns the value of the token before each blank, [B, U + 1]."""
    return jnp.pad(in_token, ((0, 0), (1, 0)), constant_values=_IMPOSSIBLE)


def _time_first(x):
    """Returns [T, B, ...] with all of time on a row's devices: sharded, every step of a scan would gather its frame."""
    return jnp.moveaxis(shard_batch_dim(x), 1, 0)


def _log_add(one, two):
    """Returns log(exp(one) + exp(two))."""
    return jnp.maximum(one, two) + jnp.log(1 + jnp.exp(-jnp.abs(one - two)))
