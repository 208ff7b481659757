"""Front ends and small models that several recipes share; no recipe by itself."""

from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.transformer_config import TransformerConfig

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
