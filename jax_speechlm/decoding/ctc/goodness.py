"""Goodness of pronunciation: how well recorded speech fits each token of a text, from CTC posteriors.

`by_alignment` scores the frames that a forced alignment gives to a token (Witt and Young 2000). `without_alignment`
sums over all alignments, and compares the text with all texts in which the token is another one or is left out (in the
manner of Cao et al. 2024, "A framework for phoneme-level pronunciation assessment using CTC").
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.decoding.ctc.alignment import Span

_IMPOSSIBLE = -1e30  # logarithm of probability 0; finite, so that no difference of two is NaN
_END = -1  # the token that ends a text
_SHORTEST = 16  # frames or tokens of the smallest program


def by_alignment(log_probs: Float[np.ndarray, "time vocab"], spans: Sequence[Span]) -> list[float]:
    """Returns the mean over a token's frames of its log-probability relative to that of the best token, in nats.

    0 is best. Blanks do not compete: a CTC model predicts them within a token too.
    """
    best_T = log_probs[:, 1:].max(-1)
    return [float(np.mean((log_probs[:, each.token] - best_T)[each.start : each.end])) for each in spans]


def without_alignment(
    log_probs: Sequence[Float[np.ndarray, "_ vocab"]], tokens: Sequence[Sequence[int]]
) -> list[list[float] | None]:
    """Returns log P(text) - log P(the token is any one or none, the others are as in the text), of each token in nats.

    0 is best: nothing but the text fits. Rows share a program by padded length; a row's scores depend on it alone.

    Args:
      log_probs: normalised log-probabilities of the frames of each row; id 0 is the blank.
      tokens: ids of the texts by row.

    Returns:
      By row, a score of every token; None for a text that has no alignment with its frames.
    """
    scores: list[list[float] | None] = [[] for _ in tokens]
    by_shape: dict[tuple[int, int], list[int]] = {}
    for row, (frames, ids) in enumerate(zip(log_probs, tokens, strict=True)):
        if len(ids):
            by_shape.setdefault((_padded(len(frames)), _padded(len(ids))), []).append(row)
    for (num_frames, num_tokens), rows in by_shape.items():
        log_probs_BxTxV = np.zeros((len(rows), num_frames, log_probs[rows[0]].shape[1]), np.float32)
        tokens_BxU = np.full((len(rows), num_tokens), _END, np.int32)
        for place, row in enumerate(rows):
            log_probs_BxTxV[place, : len(log_probs[row])] = log_probs[row]
            tokens_BxU[place, : len(tokens[row])] = tokens[row]
        length_B = np.array([len(log_probs[row]) for row in rows], np.int32)
        for row, score_U, likelihood in zip(rows, *_scores(log_probs_BxTxV, length_B, tokens_BxU), strict=True):
            is_possible = likelihood > _IMPOSSIBLE / 2
            scores[row] = np.asarray(score_U)[: len(tokens[row])].tolist() if is_possible else None
    return scores


def _padded(length: int) -> int:
    """Returns the next power of two."""
    return max(_SHORTEST, 1 << max(length - 1, 0).bit_length())


@jax.jit
@jax.vmap
def _scores(
    log_probs_TxV: Float[Array, "time vocab"], length: Int[Array, ""], tokens_U: Int[Array, " tokens"]
) -> tuple[Float[Array, " tokens"], Float[Array, ""]]:
    """Returns `without_alignment` of a row, and the log-likelihood of its text.

    Token u of a text has the state 2u + 1, the blank before it 2u. The text ends with `_END`, which has probability 1
    in the frame after the last and 0 in others, so that the last token is like any other. For the free token u,
    prefixes come from the forward sums of the states 2u and 2u - 1, suffixes from the backward sums of 2u + 2 and
    2u + 3; only its own frames are summed anew, for each id.
    """
    num_frames, num_tokens = log_probs_TxV.shape[0], tokens_U.shape[0]
    text = jnp.append(tokens_U, _END)
    before, after = jnp.concatenate([jnp.array([BLANK]), tokens_U[:-1]]), text[1:]
    states = jnp.arange(2 * num_tokens + 2)
    label_S = jnp.where(states % 2 == 1, text[states // 2], BLANK)
    end = 2 * jnp.argmax(text == _END) + 1
    differs = (label_S != jnp.roll(label_S, 2)) & (states % 2 == 1) & (states >= 3)  # may follow the token before it

    frames_T = jnp.arange(num_frames + 1)[:, None]
    log_probs_TxV = jnp.pad(log_probs_TxV.astype(jnp.float32), ((0, 1), (0, 0)))
    log_probs_TxV = jnp.where(frames_T < length, log_probs_TxV, _IMPOSSIBLE)
    emission_TxS = jnp.where(states < end, log_probs_TxV[:, jnp.maximum(label_S, 0)], _IMPOSSIBLE)
    emission_TxS = jnp.where((states == end) & (frames_T == length), 0.0, emission_TxS)

    def from_left(x_S, count):  # x of the state `count` places before
        return jnp.pad(x_S, (count, 0), constant_values=_IMPOSSIBLE)[: len(states)]

    def from_right(x_S, count):
        return jnp.pad(x_S, (0, count), constant_values=_IMPOSSIBLE)[count:]

    def backward(later_S, emission_S):
        """Steps to the log-probability of this frame and all that follow, begun in each state."""
        skip_S = from_right(jnp.where(differs, later_S, _IMPOSSIBLE), 2)
        rest_S = jnp.logaddexp(jnp.logaddexp(later_S, from_right(later_S, 1)), skip_S)
        own_S = jnp.maximum(emission_S + jnp.where(states == end, 0.0, rest_S), _IMPOSSIBLE)
        return own_S, own_S

    nothing_S = jnp.full(len(states), _IMPOSSIBLE)
    _, suffix_TxS = jax.lax.scan(backward, nothing_S, emission_TxS, reverse=True)
    likelihood = jnp.logaddexp(suffix_TxS[0, 0], suffix_TxS[0, 1])

    places = 2 * jnp.arange(num_tokens)
    ids_V = jnp.arange(1, log_probs_TxV.shape[1])
    not_before_UxV, not_after_UxV = ids_V != before[:, None], ids_V != after[:, None]

    def forward(carry, frame):
        prefix_S, free_UxV, total_U = carry
        log_probs_V, emission_S, suffix_S = frame
        blank_U, token_U = prefix_S[places], from_left(prefix_S, 1)[places]
        next_blank_U, next_token_U = suffix_S[places + 2], suffix_S[places + 3]
        leave_UxV = jnp.logaddexp(next_blank_U[:, None], jnp.where(not_after_UxV, next_token_U[:, None], _IMPOSSIBLE))
        replaced_U = jax.nn.logsumexp(free_UxV + leave_UxV, axis=-1)
        left_U = jnp.logaddexp(blank_U, jnp.where(before != after, token_U, _IMPOSSIBLE)) + next_token_U
        total_U = jnp.logaddexp(total_U, jnp.logaddexp(replaced_U, left_U))
        enter_UxV = jnp.logaddexp(blank_U[:, None], jnp.where(not_before_UxV, token_U[:, None], _IMPOSSIBLE))
        free_UxV = jnp.maximum(log_probs_V[1:] + jnp.logaddexp(free_UxV, enter_UxV), _IMPOSSIBLE)
        skip_S = jnp.where(differs, from_left(prefix_S, 2), _IMPOSSIBLE)
        prefix_S = emission_S + jnp.logaddexp(jnp.logaddexp(prefix_S, from_left(prefix_S, 1)), skip_S)
        return (jnp.maximum(prefix_S, _IMPOSSIBLE), free_UxV, total_U), None

    start = (
        nothing_S.at[0].set(0.0),  # before the first frame is like a blank
        jnp.full((num_tokens, len(ids_V)), _IMPOSSIBLE),
        jnp.full(num_tokens, _IMPOSSIBLE),
    )
    (_, _, total_U), _ = jax.lax.scan(forward, start, (log_probs_TxV, emission_TxS, suffix_TxS))
    return jnp.minimum(likelihood - total_U, 0.0), likelihood
