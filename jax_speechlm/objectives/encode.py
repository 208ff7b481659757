"""The encoder's forward pass on a batch, shared by objectives over hidden states of whole utterances."""

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jax_speechlm.core.batch import Batch, example_keys
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models import encoders
from jax_speechlm.models.conformer import Conformer
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.fast_conformer import FastConformer


def encode(
    encoder: Conformer | FastConformer,
    config: EncoderConfig,
    batch: Batch,
    frontend: FrontEnd,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "batch time dim"], Int[Array, " batch"]]:
    """Computes the last layer's hidden states of a batch.

    Args:
      config: the encoder's.
      key: for augmentation, dropout and the attention chunk; None for evaluation.

    Returns:
      Hidden states [B, T, D] and frames per row.
    """
    keys, chunk = None, None
    if key is not None:
        key, dropout_key, chunk_key = jax.random.split(key, 3)
        keys, chunk = example_keys(dropout_key, batch["example_id"]), encoders.draw_chunk(config, chunk_key)
    x_BxTxF, length_B = features(batch, frontend, key)
    hidden_BxTxD, _ = encoder(x_BxTxF, length_B, keys=keys, chunk=chunk)
    return hidden_BxTxD, config.num_frames(length_B)
