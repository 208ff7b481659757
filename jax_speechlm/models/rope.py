"""Frequencies of rotary positions, plain or scaled for texts longer than a model was first trained on."""

import abc
import math
from typing import Annotated, Literal

import numpy as np
import pydantic
from jaxtyping import Float

from jax_speechlm.core.config import Config

Frequencies = Float[np.ndarray, " half"]
"""Radians a position, for each pair of values of a head."""

_Factor = Annotated[float, pydantic.Field(ge=1, lt=1e6)]
_Length = Annotated[int, pydantic.Field(ge=1, le=1 << 30)]
_Positive = Annotated[float, pydantic.Field(gt=0, lt=1e6)]


def plain(theta: float, head_dim: int) -> Frequencies:
    """Returns theta^(-2i / head_dim), i = 0 ... head_dim / 2 - 1 (Su et al. 2021)."""
    return (theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)


class _Scaling(Config, abc.ABC):
    @abc.abstractmethod
    def frequencies(self, theta: float, head_dim: int) -> tuple[Frequencies, float]:
        """Returns the frequencies, and what cosines and sines are multiplied with."""


class Linear(_Scaling):
    """Positions divided by `factor` (Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    factor: _Factor

    def frequencies(self, theta: float, head_dim: int) -> tuple[Frequencies, float]:
        return plain(theta, head_dim) / np.float32(self.factor), 1.0


class Dynamic(_Scaling):
    """Plain up to `original` positions, as far as texts may go here.

    Beyond, transformers raises theta with the longest row of a batch (NTK scaling), so that a row's result depends on
    the others.
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: _Factor
    original: _Length

    def frequencies(self, theta: float, head_dim: int) -> tuple[Frequencies, float]:
        return plain(theta, head_dim), 1.0


class Llama3(_Scaling):
    """Wavelengths above `original / low` divided by `factor`, those below `original / high` kept, interpolated between.

    Reference: Llama 3.1's code (`apply_scaling`).
    """

    kind: Literal["llama3"] = "llama3"
    factor: _Factor
    low: _Positive
    high: _Positive
    original: _Length

    @pydantic.model_validator(mode="after")
    def _in_order(self):
        if not self.low < self.high:
            raise ValueError(f"low_freq_factor ({self.low}) must be below high_freq_factor ({self.high})")
        return self

    def frequencies(self, theta: float, head_dim: int) -> tuple[Frequencies, float]:
        frequency = plain(theta, head_dim).astype(np.float64)
        turns = self.original * frequency / (2 * math.pi)  # within the original length
        share = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (frequency * (share + (1 - share) / self.factor)).astype(np.float32), 1.0


class Yarn(_Scaling):
    """YaRN (Peng et al. 2023): slow pairs of values divided by `factor`, fast ones kept, a ramp between.

    Attributes:
      fast, slow: turns within the original length at which the ramp begins and ends.
      attention_factor: what cosines and sines are multiplied with.
      truncate: whether the ramp begins and ends at whole pairs.
    """

    kind: Literal["yarn"] = "yarn"
    factor: _Factor
    original: _Length
    fast: _Positive = 32.0
    slow: _Positive = 1.0
    attention_factor: _Positive
    truncate: bool = True

    def frequencies(self, theta: float, head_dim: int) -> tuple[Frequencies, float]:
        def pair(turns: float) -> float:
            return head_dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        begin, end = pair(self.fast), pair(self.slow)
        if self.truncate:
            begin, end = math.floor(begin), math.ceil(end)
        begin, end = max(begin, 0), min(end, head_dim - 1)
        end = end + 0.001 if begin == end else end
        ramp = np.clip((np.arange(head_dim // 2) - begin) / (end - begin), 0, 1)
        frequency = plain(theta, head_dim).astype(np.float64)
        return (frequency * (1 - ramp + ramp / self.factor)).astype(np.float32), self.attention_factor


Scaling = Annotated[Linear | Dynamic | Llama3 | Yarn, pydantic.Field(discriminator="kind")]


def frequencies(scaling: Scaling | None, theta: float, head_dim: int) -> tuple[Frequencies, float]:
    """Returns the frequencies, and what cosines and sines are multiplied with."""
    return (plain(theta, head_dim), 1.0) if scaling is None else scaling.frequencies(theta, head_dim)
