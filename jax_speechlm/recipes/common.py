"""Front ends, small models and training settings that several recipes share; no recipe by itself."""

import functools
from typing import Any

from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech, Text

small_batches = functools.partial(Speech, seconds_per_batch=48, batch_multiple=1)
"""Speech in batches that suit one or two CPU cores."""

bucketed = functools.partial(small_batches, packed=False)
"""Speech in buckets, as the studies whose recipes have a result were trained."""

CLIPS = bucketed(sets=("asterisk-en", "queen-en"), num_buckets=3, max_seconds=8.0, max_crop=0.15)
"""Crops of up to 8 s of the English speech in Debian packages, for training on audio alone or on frame labels."""

SPEEDS = (0.9, 1.0, 1.1)
"""Factors of speed perturbation."""

MEL = LogMel(stack=4)
"""80 bins, four 10 ms frames stacked: one encoder frame every 40 ms."""

CONFORMER_XS = ConformerConfig(input_dim=MEL.input_dim, dim=96, num_layers=6, num_heads=4, kernel_size=15)
"""1.3 M parameters."""

CONFORMER_144 = ConformerConfig(input_dim=MEL.input_dim, dim=144, num_layers=6, num_heads=4, kernel_size=15)
"""2.96 M parameters."""

MASKED_MEL = FrontEnd(mel=MEL, augment=Augment(time_masks=2, time_mask_ratio=0.05, freq_masks=2, freq_mask_bins=15))
"""`MEL` with SpecAugment for small models and short clips."""

CHARACTER_LM = TransformerConfig(dim=192, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=48, ffn_dim=512)
"""1.8 M parameters."""

SPEECH_LM_XS = SpeechLMConfig(
    encoder=CONFORMER_XS, adapter=Stacking(frames=2, hidden_dim=384), transformer=CHARACTER_LM
)
"""`CONFORMER_XS` before `CHARACTER_LM`, a vector every 80 ms."""


def on_cpu(
    num_steps: int, *, peak: float, warmup_steps: int, log_every: int = 50, eval_every: int, checkpoint_every: int = 0
) -> dict[str, Any]:
    """Returns the settings of an `Experiment` for a run on one or two CPU cores: a warmed-up cosine, and intervals.

    Args:
      checkpoint_every: 0 for `eval_every`.
    """
    return {
        "optimizer": Optimizer(schedule=WarmupCosine(peak=peak, warmup_steps=warmup_steps)),
        "num_steps": num_steps,
        "topology": "cpu-1",
        "loop": LoopConfig(log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every or eval_every),
    }


def language_model(
    model: TransformerConfig, *, vocab_size: int, rows: int, context: int, mesh: MeshShape, topology: str
) -> Experiment:
    """Returns a language model's training on full rows, to plan runs that others have measured."""
    data = Text(sets=("text",), tokenizer=f"data/bpe-{vocab_size}", context=context, tokens_per_batch=rows * context)
    objective = CausalLM(z_weight=0.0)
    return Experiment(data=data, objective=objective, model=model, num_steps=1000, mesh=mesh, topology=topology)
