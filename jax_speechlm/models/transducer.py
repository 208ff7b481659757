"""Predictor and joint network of a transducer (Graves 2012), over any speech encoder.

The joint network has the form of Parakeet in transformers: projections of encoder and predictor are added, then ReLU
and one linear map to the logits of tokens and, for TDT (Xu et al. 2023), of durations.
"""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.core.config import Config
from jax_speechlm.models.encoders import EncoderConfig, make_encoder
from jax_speechlm.nn.functional import parameter
from jax_speechlm.nn.layers import Linear, dropout, split_keys
from jax_speechlm.nn.recurrence import LSTM, LSTMState
from jax_speechlm.parallel.mesh import shard_batch_dim


class LSTMPredictorConfig(Config):
    """A predictor that reads all tokens so far: `num_layers` of LSTM."""

    kind: Literal["lstm"] = "lstm"
    num_layers: pydantic.PositiveInt = 1


class StatelessPredictorConfig(Config):
    """A predictor that reads the last `context` tokens: a convolution over their embeddings (Ghodsi et al. 2020)."""

    kind: Literal["stateless"] = "stateless"
    context: pydantic.PositiveInt = 2


class TransducerConfig(Config):
    """The shape of predictor and joint network.

    Attributes:
      dim: width of both.
      predictor: what the predictor reads.
      dropout: rate on the predictor's embeddings and outputs.
    """

    dim: pydantic.PositiveInt = 256
    predictor: Annotated[LSTMPredictorConfig | StatelessPredictorConfig, pydantic.Field(discriminator="kind")] = (
        LSTMPredictorConfig()
    )
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)


class LSTMPredictor(nnx.Module):
    """Layers of LSTM; the state is that of every layer."""

    def __init__(self, config: LSTMPredictorConfig, dim: int, *, rngs: nnx.Rngs):
        self.layers = nnx.Dict({str(layer): LSTM(dim, rngs=rngs) for layer in range(config.num_layers)})

    def __call__(self, x_RxLxD: Float[Array, "rows places dim"]) -> Float[Array, "rows places dim"]:
        """Returns the outputs after each of the inputs."""
        for layer in range(len(self.layers)):
            x_RxLxD = self.layers[str(layer)](x_RxLxD)
        return x_RxLxD

    def init_state(self, batch: int, dtype: jnp.dtype) -> tuple[LSTMState, ...]:
        """Returns the state before the first input."""
        return tuple(self.layers[str(layer)].init_state(batch, dtype) for layer in range(len(self.layers)))

    def step(
        self, state: tuple[LSTMState, ...], x_BxD: Float[Array, "batch dim"]
    ) -> tuple[tuple[LSTMState, ...], Float[Array, "batch dim"]]:
        """Returns state and output after an input."""
        after = []
        for layer, before in enumerate(state):
            after.append(self.layers[str(layer)].step(before, x_BxD))
            x_BxD = after[-1].hidden
        return tuple(after), x_BxD


class StatelessPredictor(nnx.Module):
    """A convolution over the last inputs, then ReLU; the state is those inputs but the latest."""

    def __init__(self, config: StatelessPredictorConfig, dim: int, *, rngs: nnx.Rngs):
        self.context, self.dim = config.context, dim
        self.convolution = Linear((config.context, dim), (dim,), (None, "embed", None), rngs=rngs)

    def __call__(self, x_RxLxD: Float[Array, "rows places dim"]) -> Float[Array, "rows places dim"]:
        """Returns the outputs after each of the inputs."""
        before, places = self.context - 1, x_RxLxD.shape[1]
        padded = jnp.pad(x_RxLxD, ((0, 0), (before, 0), (0, 0)))
        windows_RxLxCxD = jnp.stack([padded[:, k : k + places] for k in range(self.context)], axis=2)
        return jax.nn.relu(self.convolution(windows_RxLxCxD))

    def init_state(self, batch: int, dtype: jnp.dtype) -> Float[Array, "batch before dim"]:
        """Returns the state before the first input."""
        return jnp.zeros((batch, self.context - 1, self.dim), dtype)

    def step(
        self, state: Float[Array, "batch before dim"], x_BxD: Float[Array, "batch dim"]
    ) -> tuple[Float[Array, "batch before dim"], Float[Array, "batch dim"]]:
        """Returns state and output after an input."""
        window_BxCxD = jnp.concatenate([state, x_BxD[:, None]], axis=1)
        return window_BxCxD[:, 1:], jax.nn.relu(self.convolution(window_BxCxD))


class PredictorState(NamedTuple):
    """State of a transducer's predictor, and its projected output."""

    layers: Any
    output: Float[Array, "batch dim"]


class TransducerModel(nnx.Module):
    """Encoder, predictor, joint network and, if wanted, an auxiliary CTC head on the encoder.

    Args:
      num_durations: durations that the joint network predicts; 0 for RNN-T.
      ctc: whether there is a CTC head.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        config: TransducerConfig,
        vocab_size: int,
        num_durations: int = 0,
        *,
        ctc: bool = False,
        rngs: nnx.Rngs,
    ):
        dim, predictor = config.dim, config.predictor
        self.rate, self.vocab_size = config.dropout, vocab_size
        self.encoder = make_encoder(encoder, rngs=rngs)
        self.encoder_projection = Linear((encoder.dim,), (dim,), ("embed", None), rngs=rngs)
        self.embedding = parameter(rngs.params(), (vocab_size, dim), (None, "embed"), jax.nn.initializers.normal(1.0))
        make = LSTMPredictor if isinstance(predictor, LSTMPredictorConfig) else StatelessPredictor
        self.predictor = make(predictor, dim, rngs=rngs)
        self.predictor_projection = Linear((dim,), (dim,), ("embed", None), rngs=rngs)
        self.joint = Linear((dim,), (vocab_size + num_durations,), ("embed", "vocab"), rngs=rngs)
        self.head = Linear((encoder.dim,), (vocab_size,), ("embed", "vocab"), rngs=rngs) if ctc else None

    @property
    def dtype(self) -> str:
        """Compute type."""
        return self.encoder.config.dtype

    def project(self, hidden_BxTxD: Float[Array, "batch time hidden"]) -> Float[Array, "batch time dim"]:
        """Returns the encoder's part of the joint network's input, sharded over the batch only."""
        return shard_batch_dim(self.encoder_projection(hidden_BxTxD.astype(self.dtype)))

    def ctc_logits(self, hidden_BxTxD: Float[Array, "batch time hidden"]) -> Float[Array, "batch time vocab"]:
        """Computes the CTC head's logits of encoder outputs, sharded over the batch only."""
        return shard_batch_dim(self.head(hidden_BxTxD))

    def predict(
        self, tokens_BxNxU: Int[Array, "batch utterances tokens"], keys_BxN: Key[Array, "batch utterances"] | None
    ) -> Float[Array, "batch utterances places dim"]:
        """Returns the predictor's part of the joint network's input after 0 to U tokens; keys are of dropout."""
        batch, num_utterances, num_tokens = tokens_BxNxU.shape
        inner, outer = split_keys(None if keys_BxN is None else keys_BxN.reshape(-1), 2)
        tokens_RxL = jnp.pad(tokens_BxNxU.reshape(-1, num_tokens), ((0, 0), (1, 0)), constant_values=BLANK)
        x_RxLxD = dropout(self._embed(tokens_RxL), self.rate, inner)
        x_RxLxD = self.predictor_projection(dropout(self.predictor(x_RxLxD), self.rate, outer))
        return shard_batch_dim(x_RxLxD.reshape(batch, num_utterances, num_tokens + 1, -1))

    def init_state(self, batch: int) -> PredictorState:
        """Returns the predictor's state before the first token."""
        layers = self.predictor.init_state(batch, jnp.dtype(self.dtype))
        return self._advance(layers, jnp.full(batch, BLANK))

    def step(self, state: PredictorState, tokens_B: Int[Array, " batch"]) -> PredictorState:
        """Returns the predictor's state after a further token of each row; rows with the blank keep theirs."""
        after, grows_B = self._advance(state.layers, tokens_B), tokens_B != BLANK
        return jax.tree.map(
            lambda new, old: jnp.where(grows_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old), after, state
        )

    def log_probs(
        self, encoder_BxJ: Float[Array, "batch dim"], predictor_BxJ: Float[Array, "batch dim"]
    ) -> tuple[Float[Array, "batch vocab"], Float[Array, "batch durations"]]:
        """Returns log-probabilities of tokens (0 is the blank) and of durations at one node of each row."""
        logits = self.joint(jax.nn.relu(encoder_BxJ + predictor_BxJ).astype(jnp.float32))
        tokens, durations = logits[:, : self.vocab_size], logits[:, self.vocab_size :]
        return jax.nn.log_softmax(tokens), jax.nn.log_softmax(durations)

    def _advance(self, layers: Any, tokens_B: Array) -> PredictorState:
        layers, output_BxD = self.predictor.step(layers, self._embed(tokens_B))
        return PredictorState(layers, self.predictor_projection(output_BxD))

    def _embed(self, tokens: Array) -> Array:
        return jnp.take(jnp.asarray(self.embedding[...], self.dtype), tokens, axis=0, mode="clip")
