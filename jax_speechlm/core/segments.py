"""Segments: where the utterances of packed rows lie.

A row may hold several utterances one after the other. Starts and lengths, a few numbers a row, describe that at any
rate: in samples, feature vectors or frames. The segment and the position of every frame are computed from them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


class Segments(NamedTuple):
    """Utterances of every row, in the order of time; those that a row lacks have length 0 and stand last.

    Attributes:
      start: first sample, feature vector or frame of each utterance; a row with room for one utterance starts at 0.
      length: how many of them it has.
    """

    start: Int[Array, "batch utterances"]
    length: Int[Array, "batch utterances"]

    @classmethod
    def one_after_another(cls, length: Int[Array, "batch utterances"]) -> "Segments":
        """Returns segments of these lengths without gaps, from the start of the row."""
        return cls(jnp.cumsum(length, axis=1) - length, length)

    @classmethod
    def of(cls, lengths: "Segments | Int[Array, ' batch']") -> "Segments":
        """Returns segments as they are, and lengths of rows as segments of one utterance a row."""
        if isinstance(lengths, cls):
            return lengths
        length = jnp.asarray(lengths)[:, None]
        return cls(jnp.zeros_like(length), length)

    @property
    def num(self) -> int:
        """Room for utterances in a row; with 1, arrays over time need no comparison of segments."""
        return self.start.shape[1]

    def at_rate(self, step: int, count: Callable[[Int[Array, "..."]], Int[Array, "..."]]) -> "Segments":
        """Returns the segments at a lower rate.

        Args:
          step: divisor of the rate, and of every start.
          count: maps lengths to lengths at the lower rate.
        """
        return Segments(self.start // step, count(self.length).astype(jnp.int32))

    def repeat(self, times: int) -> "Segments":
        """Returns segments with every row repeated."""
        return Segments(jnp.repeat(self.start, times, axis=0), jnp.repeat(self.length, times, axis=0))

    def belongs(self, num_frames: int) -> Bool[Array, "batch time utterances"]:
        """Returns whether a frame belongs to an utterance."""
        after = jnp.arange(num_frames)[:, None] - self.start[:, None]
        return (after >= 0) & (after < self.length[:, None])

    def mask(self, num_frames: int) -> Bool[Array, "batch time"]:
        """Returns True at frames of utterances, False at padding."""
        return jnp.any(self.belongs(num_frames), axis=-1)

    def segment(self, num_frames: int) -> Int[Array, "batch time"]:
        """Returns the utterance of each frame, from 1; 0 at padding."""
        numbers = jnp.arange(1, self.num + 1, dtype=jnp.int32)
        return jnp.sum(jnp.where(self.belongs(num_frames), numbers, 0), axis=-1)

    def position(self, num_frames: int) -> Int[Array, "batch time"]:
        """Returns the index of each frame in its utterance; its index in the row at padding."""
        index = jnp.arange(num_frames, dtype=jnp.int32)
        if self.num == 1:
            return jnp.broadcast_to(index, (self.start.shape[0], num_frames))
        return index - self.spread(self.start, num_frames)

    def spread(
        self, values: Shaped[Array, "batch utterances *shape"], num_frames: int
    ) -> Shaped[Array, "batch time *shape"]:
        """Returns the value of each frame's utterance; 0 at padding."""
        belongs = self.belongs(num_frames)
        belongs = belongs.reshape(*belongs.shape, *(1,) * (values.ndim - 2))
        # A sum over the few utterances, of which one is not 0, fuses with what follows; a gather would not.
        return jnp.sum(jnp.where(belongs, values[:, None], jnp.zeros((), values.dtype)), axis=2, dtype=values.dtype)

    def sum(self, x: Float[Array, "batch time *shape"]) -> Float[Array, "batch utterances *shape"]:
        """Returns the sum over the frames of each utterance."""
        belongs = self.belongs(x.shape[1])
        if self.num == 1:
            mask = belongs.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
            return jnp.sum(x, axis=1, keepdims=True, where=mask)
        weights = belongs.astype(x.dtype)
        return jnp.einsum("btn,bt...->bn...", weights, x, precision=jax.lax.Precision.HIGHEST)

    def mean(self, x: Float[Array, "batch time *shape"]) -> Float[Array, "batch utterances *shape"]:
        """Returns the mean over the frames of each utterance; 0 without frames."""
        count = jnp.maximum(self.length, 1)
        return self.sum(x) / count.reshape(*count.shape, *(1,) * (x.ndim - 2))


Lengths: TypeAlias = Segments | Int[Array, " batch"]
"""Segments, or lengths of rows with one utterance each."""


def at_rate(lengths: Lengths, step: int, count: Callable[[Int[Array, "..."]], Int[Array, "..."]]) -> Lengths:
    """Returns segments or lengths at a lower rate, in the form given; arguments as of `Segments.at_rate`."""
    if isinstance(lengths, Segments):
        return lengths.at_rate(step, count)
    return count(lengths).astype(jnp.int32)


def move(
    x: Shaped[Array, "batch time *shape"], source: Segments, target: Segments, num_frames: int
) -> Shaped[Array, "batch {num_frames} *shape"]:
    """Moves spans of each row, by a gather forward and, in the gradient, a gather back instead of a scatter.

    Args:
      source, target: first index in x and in the result of each span, in ascending order, and its length, the same in
        both.
      num_frames: length of the result, 0 outside the spans.
    """
    return _move(x, source, target, num_frames, x.shape[1])


def moved_from(source: Segments, target: Segments, num_frames: int) -> Int[Array, "batch {num_frames}"]:
    """Returns the index before `move` of each frame after it; arbitrary outside the spans."""
    return jnp.arange(num_frames, dtype=jnp.int32) + target.spread(source.start - target.start, num_frames)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _move(x, source, target, num_frames, num_before):
    if not num_before:
        return jnp.zeros((len(x), num_frames, *x.shape[2:]), x.dtype)
    index = moved_from(source, target, num_frames)
    trailing = (*index.shape, *(1,) * (x.ndim - 2))
    moved = jnp.take_along_axis(x, index.reshape(trailing), axis=1, mode="clip")
    return jnp.where(target.mask(num_frames).reshape(trailing), moved, jnp.zeros((), x.dtype))


def _move_forward(x, source, target, num_frames, num_before):
    return _move(x, source, target, num_frames, num_before), (source, target)


def _move_backward(num_frames, num_before, spans, gradient):
    del num_frames
    source, target = spans
    return move(gradient, target, source, num_before), None, None


_move.defvjp(_move_forward, _move_backward)
