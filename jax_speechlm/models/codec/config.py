"""Settings of the WavTokenizer codec."""

import math
from typing import Annotated, Literal

import pydantic

from jax_speechlm.core.config import Config
from jax_speechlm.nn.functional import Remat
from jax_speechlm.nn.layers import Count

_MOST_CODES = 2**16 - 1
"""The files of unit ids have 16 bits an id, one value of which marks an empty place."""


class WavTokenizerConfig(Config):
    """The shape of the codec. The defaults give 50 codes a second at 16 kHz.

    Attributes:
      num_filters: channels of the encoder's first convolution; each stage doubles them.
      strides: samples that each stage of the encoder makes one of, first stage first. Their product is `hop`: 320 is
        50 codes a second at 16 kHz, 640 is 25.
      num_residual_layers: residual blocks of a stage.
      dilation_growth: factor of the dilation from one residual block to the next.
      compress: divisor of the channels inside a residual block.
      conv_shortcut: whether the shortcut of a residual block is a convolution of one tap, or the identity.
      kernel_size, last_kernel_size, residual_kernel_size: taps of the first and the last convolution of the encoder and
        of its residual blocks.
      num_lstm_layers: LSTM layers after the last stage.
      latent_dim: width of the codes' vectors.
      codebook_size: number of codes.
      dim: width of the decoder; a multiple of `num_groups`.
      ffn_dim: inner width of the decoder's ConvNeXt blocks.
      num_layers: ConvNeXt blocks.
      num_groups: groups of channels that the decoder's group norms normalise over.
      num_conditions: rows of the scale and shift tables of the decoder's adaptive layer norms, the first of which is in
        use; imported models may have more.
      norm_eps: added to the variances in the decoder.
      dropout: rate inside the residual blocks of the decoder's position net.
      remat: activations of the ConvNeXt blocks that the forward pass keeps for the backward pass (see
        `functional.Remat`).
      dtype: compute type; parameters, norms, codes and the inverse Fourier transform are float32.
    """

    kind: Literal["wav_tokenizer"] = "wav_tokenizer"
    num_filters: pydantic.PositiveInt = 32
    strides: Annotated[tuple[pydantic.PositiveInt, ...], pydantic.Field(min_length=1)] = (2, 4, 5, 8)
    num_residual_layers: pydantic.NonNegativeInt = 1
    dilation_growth: pydantic.PositiveInt = 2
    compress: pydantic.PositiveInt = 2
    conv_shortcut: bool = True
    kernel_size: pydantic.PositiveInt = 7
    last_kernel_size: pydantic.PositiveInt = 7
    residual_kernel_size: pydantic.PositiveInt = 3
    num_lstm_layers: pydantic.PositiveInt = 2
    latent_dim: pydantic.PositiveInt = 512
    codebook_size: Annotated[int, pydantic.Field(ge=1, le=_MOST_CODES)] = 512
    dim: pydantic.PositiveInt = 768
    ffn_dim: pydantic.PositiveInt = 2304
    num_layers: pydantic.PositiveInt = 12
    num_groups: pydantic.PositiveInt = 32
    num_conditions: pydantic.PositiveInt = 1
    norm_eps: pydantic.PositiveFloat = 1e-6
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _widths_fit(self):
        if self.dim % self.num_groups:
            raise ValueError(f"dim ({self.dim}) must be a multiple of num_groups ({self.num_groups})")
        if self.num_filters % self.compress:
            raise ValueError(f"num_filters ({self.num_filters}) must be a multiple of compress ({self.compress})")
        if self.hop % 2:
            raise ValueError(f"the product of strides ({self.hop}) must be even, so that frames of the audio are whole")
        return self

    @property
    def hop(self) -> int:
        """Samples from one code to the next."""
        return math.prod(self.strides)

    @property
    def n_fft(self) -> int:
        """Samples of a frame of the inverse Fourier transform."""
        return 4 * self.hop

    @property
    def subsampling(self) -> int:
        """Frames of the front end for a code: its hop must be the codec's."""
        return 1

    def num_codes(self, num_samples: Count) -> Count:
        """Returns the number of codes of `num_samples` samples: one for each whole or partial hop."""
        return -(-num_samples // self.hop)

    def forward_flops(self, num_samples: int, batch_size: int) -> float:
        """Returns the FLOPs of the matrix products of encoding and decoding rows of `num_samples`."""
        width, rate, sample = self.num_filters, 1, self.kernel_size * self.num_filters
        for stride in self.strides:
            inner = width // self.compress
            residual = width * inner * (self.residual_kernel_size + 1) + self.conv_shortcut * width**2
            sample += (self.num_residual_layers * residual + 2 * width * 2 * width) / rate
            width, rate = 2 * width, rate * stride
        code = self.num_lstm_layers * 8 * width**2 + self.last_kernel_size * width * self.latent_dim
        code += self.latent_dim * (self.codebook_size + 7 * self.dim)
        code += self.dim * (4 * 2 * 3 * self.dim + 4 * self.dim + self.num_layers * (2 * self.ffn_dim + 7))
        code += (self.n_fft + 2) * (self.dim + self.n_fft)
        num_codes = self.num_codes(num_samples)
        attention = 2 * self.dim * num_codes
        return 2.0 * batch_size * (sample * num_samples + (code + attention) * num_codes)
