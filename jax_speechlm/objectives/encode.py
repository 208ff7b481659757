"""What a speech encoder makes of a batch: the step that objectives over whole hidden states begin with."""

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
    """Hidden states of the last layer, and how many frames each row has.

    Args:
      config: the encoder's.
      key: augmentation, dropout and the chunk are drawn from it; None is evaluation.
    """
    keys, chunk = None, None
    if key is not None:
        key, dropout_key, chunk_key = jax.random.split(key, 3)
        keys, chunk = example_keys(dropout_key, batch["example_id"]), encoders.draw_chunk(config, chunk_key)
    x_BxTxF, length_B = features(batch, frontend, key)
    hidden_BxTxD, _ = encoder(x_BxTxF, length_B, keys=keys, chunk=chunk)
    return hidden_BxTxD, config.num_frames(length_B)
