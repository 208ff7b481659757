"""Searches over streams: the tokens of hidden states that arrive in chunks."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

from jax_speechlm.nn.functional import Params


class Emissions(NamedTuple):
    """Tokens that a search finds in a chunk, in order; a place without one has token 0, the blank.

    Attributes:
      token: ids.
      frame: frame in the chunk at which each begins.
      width: frames that it lasts; they may be beyond the chunk.
      log_prob: log-probability in nats, at each of these frames.
      continues: whether this is a further frame of the token before, which it extends.
    """

    token: Int[Array, "batch places"]
    frame: Int[Array, "batch places"]
    width: Int[Array, "batch places"]
    log_prob: Float[Array, "batch places"]
    continues: Bool[Array, "batch places"]


@runtime_checkable
class StreamSearch(Protocol):
    """A search as a streaming function. A chunk in which a stream has no frame leaves its state as it is."""

    def init_state(self, params: Params, batch: int) -> Any:
        """Returns the state before the first frame of `batch` streams, from the parameters of the whole model."""

    def step(
        self,
        params: Params,
        state: Any,
        hidden_BxCxD: Float[Array, "batch chunk dim"],
        num_frames_B: Int[Array, " batch"],
    ) -> tuple[Any, Emissions]:
        """Searches the next chunk; pure.

        Args:
          num_frames_B: frames of the chunk that are valid.
        """
