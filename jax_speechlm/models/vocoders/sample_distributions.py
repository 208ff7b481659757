"""Distributions of one audio sample in [-1, 1], as autoregressive vocoders predict them."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Float, Int, Key

from jax_speechlm.core.config import Config

_MIN_LOG_SCALE = -9.0  # e^-9 is four of the bins of 16 bits
_BIN = 2.0**-15  # distance of two samples of 16 bits, the lowest of which is -1


class MuLaw(Config):
    """Categorical distribution over samples on a logarithmic scale (van den Oord et al. 2016, section 2.2).

    Attributes:
      classes: values of a sample.
    """

    kind: Literal["mu_law"] = "mu_law"
    classes: Annotated[int, pydantic.Field(ge=2)] = 256

    @property
    def size(self) -> int:
        """Values that describe the distribution."""
        return self.classes

    def encode(self, samples: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Returns the class of each sample."""
        largest = self.classes - 1
        companded = jnp.sign(samples) * jnp.log1p(largest * jnp.abs(samples)) / math.log1p(largest)
        return jnp.clip(jnp.floor((companded + 1) / 2 * largest + 0.5), 0, largest).astype(jnp.int32)

    def decode(self, classes: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the sample of each class."""
        largest = self.classes - 1
        companded = 2 * classes.astype(jnp.float32) / largest - 1
        return jnp.sign(companded) * jnp.expm1(jnp.abs(companded) * math.log1p(largest)) / largest

    def nll(self, outputs: Float[Array, "*shape size"], samples: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the negative log-likelihood of samples, in nats."""
        log_probs = jax.nn.log_softmax(outputs.astype(jnp.float32))
        chosen = jax.nn.one_hot(self.encode(samples), self.classes, dtype=bool)
        return -jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)

    def draw(self, outputs: Float[Array, "rows size"], keys: Key[Array, " rows"]) -> Float[Array, " rows"]:
        """Draws a sample for each row."""
        return self.decode(jax.vmap(jax.random.categorical)(keys, outputs.astype(jnp.float32)))


class Logistics(Config):
    """Mixture of logistic distributions over samples of 16 bits (Salimans et al. 2017, "PixelCNN++").

    Attributes:
      mixtures: components.
    """

    kind: Literal["logistics"] = "logistics"
    mixtures: pydantic.PositiveInt = 10

    @property
    def size(self) -> int:
        """Values that describe the distribution: weight, mean and scale of each component."""
        return 3 * self.mixtures

    def nll(self, outputs: Float[Array, "*shape size"], samples: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the negative log-likelihood of samples, in nats; the outer bins have all that lies beyond."""
        weights, means, log_scales = self._parts(outputs)
        x = samples[..., None]
        above, below = (x - means + _BIN / 2) * jnp.exp(-log_scales), (x - means - _BIN / 2) * jnp.exp(-log_scales)
        # log(sigmoid(above) - sigmoid(below)), from differences that do not vanish
        inside = above + jnp.log(-jnp.expm1(-jnp.maximum(above - below, 1e-12)))
        inside -= jax.nn.softplus(above) + jax.nn.softplus(below)
        inside = jnp.where(x < -1 + _BIN / 2, jax.nn.log_sigmoid(above), inside)
        inside = jnp.where(x > 1 - 1.5 * _BIN, jax.nn.log_sigmoid(-below), inside)
        return -jax.nn.logsumexp(jax.nn.log_softmax(weights) + inside, axis=-1)

    def draw(self, outputs: Float[Array, "rows size"], keys: Key[Array, " rows"]) -> Float[Array, " rows"]:
        """Draws a sample for each row."""

        def one(output: Array, key: Array) -> Array:
            choice, place = jax.random.split(key)
            weights, means, log_scales = self._parts(output)
            component = jax.random.categorical(choice, weights)
            drawn = jax.random.logistic(place)
            return means[component] + jnp.exp(log_scales[component]) * drawn

        return jnp.clip(jax.vmap(one)(outputs, keys), -1, 1)

    def _parts(self, outputs: Float[Array, "*shape size"]) -> tuple[Array, Array, Array]:
        weights, means, log_scales = jnp.split(outputs.astype(jnp.float32), 3, axis=-1)
        return weights, means, jnp.maximum(log_scales, _MIN_LOG_SCALE)


SampleDistribution = Annotated[MuLaw | Logistics, pydantic.Field(discriminator="kind")]
