"""Transducer losses: RNN-T (Graves 2012) and TDT (Xu et al. 2023), without the logits of all nodes in memory.

This file needs JAX alone, so that other projects can take it as it is.

The lattice of an utterance has a node for each frame t and each number u of tokens before it. From a node, a blank
leads d frames on, and a token to u + 1 and d frames on. In RNN-T d is 1 for the blank and 0 for a token; in TDT the
network predicts d, one of `durations`, beside the token, and the blank has none of duration 0. A path ends with a blank
that leads exactly to the end of the utterance.

The likelihood is computed by a scan over anti-diagonals t + u, whose nodes do not depend on each other, from the last
to the first. A log-probability is held as a whole number and a rest near 0, because float32 would round those of long
utterances to 1e-4. The forward scan returns the conditional probability of every arc at its node; the gradient, which
is the probability of passing an arc, is then a scan of products, without exponentials.

Shapes in names: B rows, N utterances of a row, T frames, U tokens, L = U + 1, J joint dimension, V vocabulary, D
durations, A arcs, K diagonals. Token id 0 is the blank.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray

_IMPOSSIBLE = -1e30  # logarithm of probability 0; finite, so that no difference of two is NaN


def transducer_loss(
    logits_BxTxLxV: Array,
    length_B: Array,
    tokens_BxU: Array,
    token_length_B: Array,
    *,
    durations: tuple[int, ...] = (),
    sigma: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Computes the negative log-likelihood of each row's tokens, summed over all alignments, from logits of all nodes.

    Args:
      logits_BxTxLxV: unnormalised, for each frame and 0 to U previous tokens; TDT has V + D, durations last.
      length_B: frames of each row.
      tokens_BxU: ids 1..V-1; those from `token_length_B` on are ignored.
      token_length_B: 0 is allowed; the only alignments are then all blanks.
      durations: durations of TDT in frames, among them 1; () for RNN-T.
      sigma: subtracted from the log-probabilities of tokens and blanks, so that TDT prefers long durations
        (logit under-normalisation, 0.05 in Xu et al.).

    Returns:
      The losses in nats [B], never negative, and a mask of feasible rows [B] (see `is_feasible`). The loss and gradient
      of the others are 0.
    """
    logits = logits_BxTxLxV.astype(jnp.float32)
    vocab = logits.shape[-1] - len(durations)
    log_p_BxTxLxV = jax.nn.log_softmax(logits[..., :vocab]) - sigma
    targets_BxL = jnp.clip(jnp.pad(tokens_BxU, ((0, 0), (0, 1))), 0, vocab - 1)
    token_BxTxL = jnp.take_along_axis(log_p_BxTxLxV, targets_BxL[:, None, :, None], axis=-1)[..., 0]
    duration_BxTxLxD = jax.nn.log_softmax(logits[..., vocab:])
    segment_BxT = (jnp.arange(logits.shape[1]) < length_B[:, None]).astype(jnp.int32)
    nodes = log_p_BxTxLxV[..., 0], token_BxTxL, duration_BxTxLxD
    losses = _losses(*nodes, segment_BxT, token_length_B[:, None], durations)
    return tuple(x[:, 0] for x in losses)


def packed_transducer_loss(
    encoder_BxTxJ: Array,
    predictor_BxNxLxJ: Array,
    kernel_JxV: Array,
    bias_V: Array,
    segment_BxT: Array,
    tokens_BxNxU: Array,
    token_length_BxN: Array,
    *,
    durations: tuple[int, ...] = (),
    sigma: float = 0.0,
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes `transducer_loss` of rows of one or several utterances, from the outputs of encoder and predictor.

    The logits of a node are activation(encoder + predictor) @ kernel + bias. They exist for `chunk` frames at a time,
    and are computed again for the gradient.

    Args:
      encoder_BxTxJ: projected encoder outputs; their type is that of the products, softmax and sums are float32.
      predictor_BxNxLxJ: projected predictor outputs after 0 to U tokens of each utterance, of the same type.
      kernel_JxV, bias_V: output layer; for TDT V + D columns, those of the durations last.
      segment_BxT: utterance of the frame, from 1; 0 is padding. The frames of an utterance are contiguous.
      tokens_BxNxU, token_length_BxN: as of `transducer_loss`, for each utterance.
      chunk: frames of a row at a time; None for as many as give 2^20 logits, 4 MiB.

    Returns:
      The losses in nats [B, N], and a mask of feasible utterances [B, N].
    """
    batch, num_frames = encoder_BxTxJ.shape[:2]
    num_utterances, places = predictor_BxNxLxJ.shape[1:3]
    vocab = kernel_JxV.shape[1] - len(durations)
    kernel_JxV, bias_V = jnp.asarray(kernel_JxV, encoder_BxTxJ.dtype), jnp.asarray(bias_V)
    targets_BxNxL = jnp.clip(jnp.pad(tokens_BxNxU, ((0, 0), (0, 0), (0, 1))), 0, vocab - 1)
    # The logits of targets, by their own columns of the kernel: the gradient needs no scatter over the vocabulary.
    target_kernel_BxNxLxJ, target_bias_BxNxL = kernel_JxV.T[targets_BxNxL], bias_V[targets_BxNxL]

    def nodes(frames: tuple[Array, Array]) -> tuple[jax.Array, ...]:
        encoder_BxCxJ, segment_BxC = frames

        def spread(x_BxNx: Array) -> jax.Array:
            """Returns the value of each frame's utterance."""
            if num_utterances == 1:
                return x_BxNx
            own_BxCxN = (segment_BxC[..., None] == jnp.arange(1, num_utterances + 1)).astype(x_BxNx.dtype)
            return jnp.einsum("bcn,bn...->bc...", own_BxCxN, x_BxNx, precision=jax.lax.Precision.HIGHEST)

        hidden_BxCxLxJ = activation(encoder_BxCxJ[:, :, None] + spread(predictor_BxNxLxJ))
        logits = jnp.einsum("bclj,jv->bclv", hidden_BxCxLxJ, kernel_JxV, preferred_element_type=jnp.float32) + bias_V
        log_z_BxCxL = jax.nn.logsumexp(logits[..., :vocab], axis=-1) + sigma
        products = hidden_BxCxLxJ.astype(jnp.float32) * spread(target_kernel_BxNxLxJ).astype(jnp.float32)
        token_BxCxL = products.sum(-1) + spread(target_bias_BxNxL) - log_z_BxCxL
        return logits[..., 0] - log_z_BxCxL, token_BxCxL, jax.nn.log_softmax(logits[..., vocab:])

    if chunk is None:
        chunk = max(1, (1 << 20) // (batch * places * (vocab + len(durations))))
    chunks = -(-num_frames // chunk)
    size = -(-num_frames // max(1, chunks))  # of equal chunks

    def cut(x: Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, chunks * size - num_frames)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, chunks, size, *x.shape[2:]), 1, 0)

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(batch, chunks * size, *x.shape[3:])[:, :num_frames]

    scores = jax.lax.map(jax.checkpoint(nodes), (cut(encoder_BxTxJ), cut(segment_BxT)))
    return _losses(*map(joined, scores), segment_BxT, token_length_BxN, durations)


def is_feasible(length: Array, token_length: Array, durations: tuple[int, ...] = ()) -> Array:
    """Returns whether an alignment exists: with a frame, and with enough of them if every token takes at least one."""
    return (length > 0) & (length > token_length * min(durations, default=0))


def check_durations(durations: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the durations; raises ValueError if they cannot be those of a transducer.

    With a blank of duration 1, every utterance with enough frames has an alignment.
    """
    if durations and (1 not in durations or min(durations) < 0 or len(set(durations)) < len(durations)):
        raise ValueError(f"durations are {durations}: they must be different, none negative, and 1 among them")
    return durations


def _losses(
    blank_BxTxL: jax.Array,
    token_BxTxL: jax.Array,
    duration_BxTxLxD: jax.Array,
    segment_BxT: Array,
    token_length_BxN: Array,
    durations: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Returns losses and feasibility of every utterance [B, N], from the log-probabilities of the nodes' symbols."""
    check_durations(durations)
    num_frames = segment_BxT.shape[1]
    own_BxNxT = segment_BxT[:, None] == jnp.arange(1, token_length_BxN.shape[1] + 1)[:, None]
    length_BxN, start_BxN = own_BxNxT.sum(-1), jnp.argmax(own_BxNxT, axis=-1)

    def by_frame(x_BxN: Array) -> jax.Array:
        """Returns the value of each frame's utterance [B, T, 1], 0 at padding."""
        return jnp.sum(jnp.where(own_BxNxT, x_BxN[..., None], 0), axis=1)[..., None]

    left = by_frame(start_BxN + length_BxN) - jnp.arange(num_frames)[:, None]  # frames to the utterance's end
    tokens_left = by_frame(token_length_BxN) - jnp.arange(blank_BxTxL.shape[2])
    if durations:
        blanks = {d: blank_BxTxL + duration_BxTxLxD[..., i] for i, d in enumerate(durations) if d > 0}
        tokens = {d: token_BxTxL + duration_BxTxLxD[..., i] for i, d in enumerate(durations)}
    else:
        blanks, tokens = {1: blank_BxTxL}, {0: token_BxTxL}
    end = jnp.full_like(blank_BxTxL, _IMPOSSIBLE)
    for d, log_prob in blanks.items():
        end = jnp.where((left == d) & (tokens_left == 0), log_prob, end)
    arcs = [end]
    arcs += [jnp.where(left > d, log_prob, _IMPOSSIBLE) for d, log_prob in blanks.items()]
    arcs += [jnp.where((left > d) & (tokens_left > 0), log_prob, _IMPOSSIBLE) for d, log_prob in tokens.items()]
    total_BxN = _log_likelihood(jnp.stack(arcs), start_BxN, tuple(blanks), tuple(tokens))
    feasible_BxN = is_feasible(length_BxN, token_length_BxN, durations)
    # Selected, so that no gradient reaches an utterance without an alignment. Rounding can make a loss -1e-6.
    return jnp.where(feasible_BxN, jnp.maximum(-total_BxN, 0), 0), feasible_BxN


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _log_likelihood(arcs_AxBxTxL, start_BxN, blanks, tokens):
    """Returns the log-likelihood of each utterance, summed over its paths, [B, N].

    Args:
      arcs_AxBxTxL: log-probabilities of each node's arc to the end, then by blanks and by tokens within the utterance.
      start_BxN: first frame of each utterance.
      blanks, tokens: durations of the arcs.
    """
    return _backward_scan(arcs_AxBxTxL, start_BxN, blanks, tokens)[0]


def _backward_scan(arcs_AxBxTxL, start_BxN, blanks, tokens):
    """Returns the log-likelihoods [B, N], and the probability of every arc at its node, [diagonals, A, B, L]."""
    num_frames = arcs_AxBxTxL.shape[2]

    def step(later, arcs_AxBxL):
        wholes, rests = (jnp.stack([jnp.zeros_like(x[0]), *_ahead(x, blanks, tokens)]) for x in later)
        rests = rests + arcs_AxBxL
        whole = jnp.round(jnp.max(wholes + rests, axis=0))
        rests = (wholes - whole) + rests
        largest = rests.max(0)
        shares = jnp.exp(rests - largest)
        total = shares.sum(0)
        here = whole, largest + jnp.log(total)
        later = tuple(jnp.concatenate([x[None], before[:-1]]) for x, before in zip(here, later, strict=True))
        return later, (*(x[:, 0] for x in here), shares / total)

    depth = max(max(blanks), max(tokens) + 1)  # later diagonals that an arc leads to
    nothing = jnp.zeros((depth, *arcs_AxBxTxL.shape[1::2]))
    _, (whole, rest, shares) = jax.lax.scan(step, (nothing + _IMPOSSIBLE, nothing), _skew(arcs_AxBxTxL), reverse=True)
    total_BxT = (whole + rest)[:num_frames].T
    return jnp.take_along_axis(total_BxT, start_BxN, axis=1), shares


def _forward(arcs_AxBxTxL, start_BxN, blanks, tokens):
    total_BxN, shares = _backward_scan(arcs_AxBxTxL, start_BxN, blanks, tokens)
    return total_BxN, (shares, start_BxN, arcs_AxBxTxL.shape[2])


def _backward(blanks, tokens, saved, gradient_BxN):
    """Returns the probability of passing each arc, times the gradient of the utterance."""
    shares, start_BxN, num_frames = saved
    diagonals, _, batch, places = shares.shape
    at_start = start_BxN == jnp.arange(diagonals)[:, None, None]
    start_KxB = jnp.sum(jnp.where(at_start, gradient_BxN, 0), axis=-1)
    depth = max(max(blanks), max(tokens) + 1)

    def step(passes, diagonal):
        start_B, shares_AxBxL = diagonal
        passed = shares_AxBxL * passes[0].at[:, 0].add(start_B)
        passes = jnp.concatenate([passes[1:], jnp.zeros_like(passes[:1])])
        for d, arc in zip(blanks, passed[1 : 1 + len(blanks)], strict=True):
            passes = passes.at[d - 1].add(arc)
        for d, arc in zip(tokens, passed[1 + len(blanks) :], strict=True):
            passes = passes.at[d, :, 1:].add(arc[:, :-1])
        return passes, passed

    _, passed = jax.lax.scan(step, jnp.zeros((depth, batch, places)), (start_KxB, shares))
    return _straighten(passed, num_frames), None


_log_likelihood.defvjp(_forward, _backward)


def _ahead(later_KxBxL, blanks, tokens):
    """Returns the values of the nodes that blanks, then tokens lead to, from those of the next diagonals."""
    after_token = jnp.pad(later_KxBxL, ((0, 0), (0, 0), (0, 1)))[..., 1:]
    return *(later_KxBxL[d - 1] for d in blanks), *(after_token[d] for d in tokens)


def _skew(arcs_AxBxTxL):
    """[A, B, T, L] -> [diagonals, A, B, L]: node (t, u) moves to diagonal t + u; diagonals are filled with nodes
    without arcs."""
    *lead, num_frames, places = arcs_AxBxTxL.shape
    diagonals = num_frames + places - 1
    x = jnp.pad(jnp.swapaxes(arcs_AxBxTxL, 2, 3), ((0, 0),) * 3 + ((0, places),), constant_values=_IMPOSSIBLE)
    x = x.reshape(*lead, -1)[..., : places * diagonals].reshape(*lead, places, diagonals)
    return jnp.moveaxis(x, -1, 0)


def _straighten(x, num_frames):
    """Inverts `_skew`."""
    diagonals, *lead, places = x.shape
    x = jnp.moveaxis(x, 0, -1).reshape(*lead, -1)
    x = jnp.pad(x, ((0, 0),) * 2 + ((0, places),)).reshape(*lead, places, diagonals + 1)
    return jnp.swapaxes(x[..., :num_frames], 2, 3)
