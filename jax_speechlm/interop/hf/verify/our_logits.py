"""What our language model gives for rows of tokens: the one side of every comparison of logits."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

from jax_speechlm.core.vocabulary import Vocabulary, pad
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import TextModel


def text_logits(
    run: LoadedRun, vocabulary: Vocabulary, rows: list[list[int]], *, hides: bool = True
) -> tuple[Int32[np.ndarray, "row time"], Bool[np.ndarray, "row time"], Float[np.ndarray, "row time vocab"]]:
    """Rows of different length in one batch, as tokens, which of them are no padding, and their logits.

    Args:
      hides: whether a model that fills gaps is shown every fifth token hidden.
    """
    if hides and not run.experiment.model.causal:
        rows = [[vocabulary.mask if place % 5 == 2 else number for place, number in enumerate(row)] for row in rows]
    width = max(map(len, rows))
    tokens, lengths = pad(rows, width), np.array([len(row) for row in rows])
    place = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    inside = place < lengths[:, None]
    make = lambda rngs: TextModel(run.experiment.model, vocabulary.size, rngs=rngs)  # noqa: E731
    graphdef = functional.declare(make).graphdef

    @jax.jit
    def logits(params: functional.Params, tokens: jax.Array, segment: jax.Array, position: jax.Array) -> jax.Array:
        transformer = functional.bind(graphdef, params).transformer
        return transformer.logits(transformer(tokens, segment, position)).astype(jnp.float32)

    return tokens, inside, np.asarray(logits(run.params, tokens, inside.astype(np.int32), place))
