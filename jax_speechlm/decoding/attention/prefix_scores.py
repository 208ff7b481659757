"""CTC prefix scores: the probability of all transcripts that begin with a prefix (Graves 2008; Watanabe et al. 2017).

A prefix is kept as the log-probabilities of its alignments with the first frames, by how many they are. A longer
prefix needs only those of its parent: a sum over the frames at which its last token may begin. So any number of
candidates costs one reduction, and only the prefixes that a beam keeps cost a scan over time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import BLANK

_IMPOSSIBLE = -1e30  # logarithm of probability 0; finite, so that no difference of two is NaN


class Prefixes(NamedTuple):
    """Prefixes of utterances, several of each.

    Attributes:
      ends_token, ends_blank: log-probability of the prefix and the first frames, from 0 to all of the padded ones,
        where the last of these is the prefix's last token, or the blank.
      last: last token; the blank for an empty prefix.
    """

    ends_token: Float[Array, "batch prefixes frames_and_one"]
    ends_blank: Float[Array, "batch prefixes frames_and_one"]
    last: Int[Array, "batch prefixes"]


def empty(log_probs_BxTxV: Float[Array, "batch time vocab"], prefixes: int) -> Prefixes:
    """Returns empty prefixes."""
    batch, frames, _ = log_probs_BxTxV.shape
    blanks_BxT = jnp.pad(jnp.cumsum(log_probs_BxTxV[..., BLANK], axis=1), ((0, 0), (1, 0)))
    shape = batch, prefixes, frames + 1
    nothing = jnp.full(shape, _IMPOSSIBLE), jnp.broadcast_to(blanks_BxT[:, None], shape)
    return Prefixes(*nothing, jnp.full(shape[:2], BLANK, jnp.int32))


def scores(
    log_probs_BxTxV: Float[Array, "batch time vocab"],
    length_B: Int[Array, " batch"],
    prefixes: Prefixes,
    tokens_BxKxC: Int[Array, "batch prefixes candidates"],
) -> Float[Array, "batch prefixes candidates"]:
    """Computes the log-probability, in nats, of transcripts that begin with a prefix and one more token.

    Args:
      log_probs_BxTxV: normalised, with at least one frame, which may be padding; id 0 is the blank.
      length_B: valid frames.
      tokens_BxKxC: never the blank.
    """
    may_begin_BxKxCxT = _may_begin(prefixes, tokens_BxKxC)
    by_token_BxVxT = log_probs_BxTxV.swapaxes(1, 2)
    token_BxKxCxT = jax.vmap(lambda frames, tokens: frames[tokens])(by_token_BxVxT, tokens_BxKxC)
    inside_BxT = jnp.arange(log_probs_BxTxV.shape[1]) < length_B[:, None]
    begins = jnp.where(inside_BxT[:, None, None], may_begin_BxKxCxT + token_BxKxCxT, _IMPOSSIBLE)
    return jnp.maximum(jax.nn.logsumexp(begins, axis=-1), _IMPOSSIBLE)


def ends(length_B: Int[Array, " batch"], prefixes: Prefixes) -> Float[Array, "batch prefixes"]:
    """Computes the log-probability, in nats, of each prefix as the whole transcript."""
    total = jnp.logaddexp(prefixes.ends_token, prefixes.ends_blank)
    return jnp.take_along_axis(total, length_B[:, None, None], axis=-1)[..., 0]


def extend(
    log_probs_BxTxV: Float[Array, "batch time vocab"],
    prefixes: Prefixes,
    tokens_BxK: Int[Array, "batch prefixes"],
) -> Prefixes:
    """Extends each prefix by a token; the blank leaves it as it is."""
    may_begin_TxBxK = jnp.moveaxis(_may_begin(prefixes, tokens_BxK[..., None])[:, :, 0], -1, 0)
    token_TxBxK = jnp.moveaxis(jnp.take_along_axis(log_probs_BxTxV, tokens_BxK[:, None], axis=2), 1, 0)
    blank_TxB = log_probs_BxTxV[..., BLANK].T

    def step(before: tuple[Array, Array], frame: tuple[Array, Array, Array]):
        in_token, in_blank = before
        may_begin, token, blank = frame
        after = (
            jnp.maximum(jnp.logaddexp(in_token, may_begin) + token, _IMPOSSIBLE),
            jnp.maximum(jnp.logaddexp(in_token, in_blank) + blank[:, None], _IMPOSSIBLE),
        )
        return after, after

    start = jnp.full(tokens_BxK.shape, _IMPOSSIBLE)
    _, columns = jax.lax.scan(step, (start, start), (may_begin_TxBxK, token_TxBxK, blank_TxB))
    grown = (jnp.concatenate([start[..., None], jnp.moveaxis(x, 0, -1)], axis=-1) for x in columns)
    same_BxK = tokens_BxK == BLANK
    kept = (
        jnp.where(same_BxK[..., None], old, new)
        for old, new in zip((prefixes.ends_token, prefixes.ends_blank), grown, strict=True)
    )
    return Prefixes(*kept, jnp.where(same_BxK, prefixes.last, tokens_BxK))


def _may_begin(prefixes: Prefixes, tokens_BxKxC: Array) -> Float[Array, "batch prefixes candidates time"]:
    """Returns the log-probability of a prefix and all frames before one where a token begins.

    A token equal to the last one needs a blank between the two.
    """
    ends_token, ends_blank = (x[..., None, :-1] for x in (prefixes.ends_token, prefixes.ends_blank))
    repeats = (tokens_BxKxC == prefixes.last[..., None])[..., None]
    return jnp.logaddexp(jnp.where(repeats, _IMPOSSIBLE, ends_token), ends_blank)
