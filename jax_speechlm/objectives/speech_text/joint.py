"""Joint pretraining of a conformer on speech, text, and speech-text pairs, as in mSLAM.

A batch belongs to one stream, determined by its arrays:

- `speech`, audio only: BEST-RQ;
- `text`, documents: masked language modelling; token embeddings enter the same layers as speech;
- `pairs`, audio and transcripts: CTC on the audio alone, and translation language modelling (TLM): audio and transcript
  of each utterance concatenated, partly masked and predicted from both.

References: Bapna et al. 2022 (mSLAM) and 2021 (SLAM), with BEST-RQ instead of w2v-BERT and masked words instead of
masked text spans; TLM: Conneau and Lample 2019.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from pydantic import Field

from data_pipelines.batching.packing import BOUNDARIES
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance, text_places
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments, move
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.conformer import Conformer, ConformerConfig, forward_flops
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import Linear
from jax_speechlm.objectives import gauges
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, mean, row_keys, split_row_keys
from jax_speechlm.objectives.lm.causal_lm import token_metrics
from jax_speechlm.objectives.lm.masked_lm import Masked, MaskedLM, mask_tokens, most_masked, take_chosen
from jax_speechlm.objectives.ssl import best_rq
from jax_speechlm.objectives.ssl.best_rq import BestRQ, Heads, Quantizer
from jax_speechlm.parallel.mesh import shard_batch_dim

STREAMS = {"speech": "speech", "text": "text", "pairs": "speech"}
"""Kind of data per stream."""

BARELY_BETTER = 1.1
"""Masked tokens are not learnt from context if accuracy is below this multiple of the most frequent token's share."""

ALL_BLANK = 0.99
"""A CTC head is still on its initial plateau if a larger share of frames is blank."""


class Joint(ObjectiveConfig):
    """Settings of joint pretraining. The streams' sampling weights are settings of `data`, a mixture.

    Attributes:
      speech: objective of the speech stream; its masks and codes are also used for the audio in TLM.
      text: objective of the text stream.
      ctc: CTC objective of the pairs.
      tlm_ratio: share of a transcript's tokens masked in TLM.
      speech_weight, text_weight: weights of the losses of these streams.
      ctc_weight, tlm_weight: weights of the two losses on pairs; a `tlm_weight` of 0 skips TLM's forward pass.
    """

    kind: Literal["joint"] = "joint"
    speech: BestRQ = BestRQ()
    text: MaskedLM = MaskedLM()
    ctc: CTC = CTC()
    tlm_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    speech_weight: Annotated[float, Field(gt=0)] = 1.0
    text_weight: Annotated[float, Field(gt=0)] = 1.0
    ctc_weight: Annotated[float, Field(gt=0)] = 1.0
    tlm_weight: Annotated[float, Field(ge=0)] = 1.0

    def check_data(self, data: Config) -> None:
        if data.kind != "mixture":
            raise ValueError(f"joint trains on a mixture of {', '.join(STREAMS)}: data of kind {data.kind} is none")
        for place, stream in enumerate(data.streams):
            if stream.name not in STREAMS:
                raise ValueError(f"joint has no stream {stream.name!r}: name it one of {', '.join(STREAMS)}")
            if stream.data.kind != STREAMS[stream.name]:
                raise ValueError(
                    f"stream {stream.name} is of {STREAMS[stream.name]}, and its data are of kind {stream.data.kind}"
                )
            if stream.data.kind == "text" and stream.data.packed:
                raise ValueError(
                    "a conformer looks over the borders of packed documents: "
                    f"set --data.streams.{place}.data.packed False"
                )

    def of_stream(self, name: str) -> ObjectiveConfig:
        pairs = _Pairs(**dict(self.ctc)) if self.tlm_weight else self.ctc
        return {"speech": self.speech, "text": self.text, "pairs": pairs}[name]

    def build(self, model: ConformerConfig, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. A batch's loss is the mean over its stream's valid targets, times the stream's weight.
        The targets of pairs are the transcripts' tokens, and TLM's masked frames and tokens, with their losses
        weighted. Metrics by stream: `speech`: as for BEST-RQ; `text`: as for masked language modelling, and `majority`,
        the share of the batch's most frequent masked token; `pairs`: `ctc_loss` and CTC's others, `tlm_codes` and
        `tlm_tokens` (nats per masked frame and token), `tlm_code_accuracy` and `tlm_token_accuracy`.
        """
        if not isinstance(model, ConformerConfig):
            raise ValueError(f"joint trains a conformer, not a {model.kind}: set model to a ConformerConfig")
        vocabulary = Vocabulary.of(tokenizer)

        def make(rngs):
            return JointModel(model, self, vocabulary, rngs=rngs)

        losses = _Losses(
            self,
            model,
            frontend,
            vocabulary,
            starts_V=self.text.starts(tokenizer),
            speech=self.speech.build(model, frontend),
            ctc=self.ctc.build(model, frontend, tokenizer),
            graphdef=functional.declare(make).graphdef,
        )

        def logits(params: functional.Params, batch: Batch) -> tuple[Array, Array]:
            return losses.ctc.logits(_ctc_params(params), batch)

        parts = {"batch_flops": losses.flops, "logits": logits, "health_check": health_check}
        return Objective(make, losses, frozen=("quantizer",), **parts)


class _Pairs(CTC):
    """CTC on batches for TLM too, where each transcript follows its audio."""

    def added_tokens(self, tokenizer: Tokenizer | None) -> int:
        del tokenizer
        return BOUNDARIES


class TextSide(nnx.Module):
    """Token embedding and output layer with a shared table (Press and Wolf 2017)."""

    def __init__(self, config: ConformerConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config = config
        # Small values give logits of order 1; `embed` scales them up to the magnitude of embedded speech.
        small = jax.nn.initializers.normal(config.dim**-0.5)
        self.table = functional.parameter(rngs.params(), (vocab_size, config.dim), ("vocab", "embed"), small)
        self.bias = functional.parameter(
            rngs.params(), (vocab_size,), ("vocab",), jax.nn.initializers.zeros, decays=False
        )

    def embed(self, tokens_BxT: Int[Array, "batch time"]) -> Float[Array, "batch time dim"]:
        """Embeds tokens in the compute dtype."""
        return shard_batch_dim((self.config.dim**0.5 * self.table[...][tokens_BxT]).astype(self.config.dtype))

    @property
    def head_kernel(self) -> Float[Array, "vocab dim"]:
        return self.table[...]

    @property
    def head_bias(self) -> Float[Array, " vocab"]:
        return self.bias[...]

    def head(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return hidden  # already normalised by the last layer


class JointModel(nnx.Module):
    """A conformer with the modules of all streams.

    `encoder` and `head` form a CTC model, `encoder` and `quantizer` of a BEST-RQ model, to share parameters.
    """

    def __init__(self, model: ConformerConfig, config: Joint, vocabulary: Vocabulary, *, rngs: nnx.Rngs):
        self.encoder = Conformer(model, rngs=rngs)
        self.head = Linear((model.dim,), (vocabulary.tokenizer_size,), ("embed", "vocab"), rngs=rngs)
        self.codes = Heads(config.speech, model.dim, rngs=rngs)
        self.quantizer = Quantizer(config.speech, model.input_dim, rngs=rngs)
        self.text = TextSide(model, vocabulary.size, rngs=rngs)


@dataclasses.dataclass(frozen=True, eq=False)
class _Losses:
    """The loss of each stream; `speech` and `ctc` are computed by their objectives on their part of the parameters."""

    config: Joint
    model: ConformerConfig
    frontend: FrontEnd
    vocabulary: Vocabulary
    starts_V: Bool[np.ndarray, " tokenizer"]
    speech: Objective
    ctc: Objective
    graphdef: nnx.GraphDef

    def __call__(
        self, params: functional.Params, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        config, stream = self.config, stream_of(batch)
        if stream == "speech":
            metrics, weight = self.speech.loss(_best_rq_params(params), batch, key)[1], config.speech_weight
        elif stream == "text":
            metrics, weight = self._text(functional.bind(self.graphdef, params), batch, key), config.text_weight
        else:
            metrics, weight = self._pairs(params, batch, key), 1.0
        total, count = metrics["loss"]
        metrics = metrics | {"loss": (weight * total, count)}
        return mean(*metrics["loss"]), metrics

    def _text(self, joint: JointModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
        ratio = self.config.text.ratio
        mask_keys, dropout_keys = split_row_keys(key, batch)
        masked = self._mask(batch["tokens"], batch["segment"], mask_keys, ratio)
        length_B = jnp.sum(batch["segment"] > 0, axis=1)
        # No attention chunk, here and in TLM: chunks are of frames, and masked tokens are predicted from both sides.
        hidden_BxTxD, _ = joint.encoder.encode(joint.text.embed(masked.tokens), length_B, keys=dropout_keys)
        most = most_masked(batch["tokens"].shape[1], ratio)
        targets = take_chosen(masked, hidden_BxTxD, batch["tokens"], batch["weight"][:, None], most)
        (metrics, _), count = token_metrics(joint.text, *targets), jnp.sum(targets.weight)
        frequent = jnp.max(gauges.code_shares(targets.token, targets.weight, self.vocabulary.size))
        named = {"loss": metrics["loss"], "masked_accuracy": metrics["accuracy"]}
        return named | {"majority": (count * frequent, count)}

    def _pairs(self, params: functional.Params, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
        ctc_key, tlm_key = (None, None) if key is None else jax.random.split(key)
        metrics = self.ctc.loss(_ctc_params(params), batch, ctc_key)[1]
        metrics = metrics | {"ctc_loss": metrics["loss"]}
        weights = {"ctc_loss": self.config.ctc_weight}
        if self.config.tlm_weight:
            metrics = metrics | self._tlm(functional.bind(self.graphdef, params), batch, tlm_key)
            weights |= dict.fromkeys(("tlm_codes", "tlm_tokens"), self.config.tlm_weight)
        total = sum(weight * metrics[name][0] for name, weight in weights.items())
        return metrics | {"loss": (total, sum(metrics[name][1] for name in weights))}

    def _tlm(self, joint: JointModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
        config, speech = self.config, self.config.speech
        text_key, key = (jax.random.key(0), None) if key is None else jax.random.split(key)
        views, num_text = speech.views(batch, key, self.frontend, self.model), text_places(batch, BOUNDARIES)
        batch, frames = by_utterance(batch), views.segments
        num_frames = views.mask_BxT.shape[1]
        length = num_frames + num_text
        tokens_BxNxU, token_length_BxN = enclose(batch["tokens"], batch["token_length"], self.vocabulary.boundary)
        segment_BxNxU = (jnp.arange(tokens_BxNxU.shape[2]) < token_length_BxN[..., None]).astype(jnp.int32)
        by_text = (x.reshape(-1, *x.shape[2:]) for x in (tokens_BxNxU, segment_BxNxU, row_keys(text_key, batch)))
        masked = self._mask(*by_text, config.tlm_ratio)

        token_length_BxN = jnp.where(batch["weight"] > 0, token_length_BxN, 0)
        utterances = Segments.one_after_another(frames.length + token_length_BxN)
        first = Segments(utterances.start, frames.length)  # of each utterance, followed by its text
        texts = Segments(utterances.start + frames.length, token_length_BxN)
        whole = tokens_BxNxU.shape[2] * jnp.arange(frames.num)
        whole = Segments(jnp.broadcast_to(whole, token_length_BxN.shape), token_length_BxN)

        def put(by_text: Array) -> Array:
            return move(by_text.reshape(len(tokens_BxNxU), -1), whole, texts, length)

        tokens_BxL, masked = put(tokens_BxNxU), Masked(*map(put, masked))
        x_BxTxD = joint.encoder.embed(best_rq.hide_frames(views, speech))
        x_BxLxD = move(x_BxTxD, frames, first, length)
        is_text = texts.mask(length)[..., None]
        x_BxLxD = shard_batch_dim(jnp.where(is_text, joint.text.embed(masked.tokens), x_BxLxD))
        hidden_BxLxD, _ = joint.encoder.encode(x_BxLxD, utterances, keys=views.dropout_keys)

        frames_BxTxD = move(hidden_BxLxD, first, frames, num_frames).astype(self.model.dtype)
        most = speech.most_masked(num_frames, self.frontend, frames.num)
        codes = best_rq.score_frames(joint.codes, joint.quantizer, views, frames_BxTxD, batch["weight"], most)
        weight_BxL = texts.spread(batch["weight"], length)
        most = most_masked(num_text, config.tlm_ratio, frames.num)
        targets = take_chosen(masked, hidden_BxLxD, tokens_BxL, weight_BxL, most)
        tokens, _ = token_metrics(joint.text, *targets)
        return {
            "tlm_codes": codes["loss"],
            "tlm_tokens": tokens["loss"],
            "tlm_code_accuracy": codes["masked_accuracy"],
            "tlm_token_accuracy": tokens["accuracy"],
        }

    def _mask(self, tokens_BxT: Array, segment_BxT: Array, keys_B: Array, ratio: float) -> Masked:
        return mask_tokens(tokens_BxT, segment_BxT, keys_B, self.vocabulary, self.starts_V, ratio)

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Returns the FLOPs of a forward pass over a batch of such shapes, analytic."""
        config = self.config
        if (stream := stream_of(batch)) == "text":
            rows, num_tokens = batch["tokens"].shape
            return self._layers(num_tokens, rows) + rows * self._output_layer(num_tokens, config.text.ratio)
        rows, num_samples = batch["audio"].shape
        speech = self.speech.forward_flops(num_samples, rows)
        if stream == "speech":
            return speech
        ctc = self.ctc.forward_flops(num_samples, rows)
        if not config.tlm_weight:
            return ctc
        num_frames, num_tokens = self.frontend.mel.num_frames(num_samples), text_places(batch, BOUNDARIES)
        longer = self._layers(num_frames + num_tokens, rows) - self._layers(num_frames, rows)
        return ctc + speech + longer + rows * self._output_layer(num_tokens, config.tlm_ratio)

    def _layers(self, length: int, rows: int) -> float:
        """Returns FLOPs of the conformer without the input projection."""
        return forward_flops(self.model, length, rows) - 2.0 * rows * length * self.model.input_dim * self.model.dim

    def _output_layer(self, num_tokens: int, ratio: float) -> float:
        """Returns FLOPs of the output layer for a row's chosen tokens."""
        return 2.0 * most_masked(num_tokens, ratio) * self.model.dim * self.vocabulary.size


def _ctc_params(params: functional.Params) -> functional.Params:
    """Selects the parameters of the CTC model."""
    return {name: params[name] for name in ("encoder", "head")}


def _best_rq_params(params: functional.Params) -> functional.Params:
    """Selects the parameters of the BEST-RQ model."""
    return {"encoder": params["encoder"], "head": params["codes"], "quantizer": params["quantizer"]}


def stream_of(batch: Mapping[str, Any]) -> str:
    """Returns the stream of a batch from names and shapes of its arrays, which are static under jit."""
    if "segment" in batch:
        return "text"
    return "pairs" if "tokens" in batch and batch["tokens"].shape[-1] else "speech"


def enclose(
    tokens: Int[Array, "*utterances tokens"], length: Int[Array, "*utterances"], boundary: int
) -> tuple[Int[Array, "*utterances enclosed"], Int[Array, "*utterances"]]:
    """Adds a boundary before and after each transcript; returns tokens and lengths."""
    tokens = jnp.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(1, 1)], constant_values=boundary)
    place = jnp.arange(tokens.shape[-1])
    return jnp.where(place == length[..., None] + 1, boundary, tokens), length + BOUNDARIES


def health_check(metrics: Mapping[str, float], after_warmup: bool) -> str | None:
    """Returns a warning if a stream does not contribute to learning, else None. Metrics are prefixed by the stream."""

    def of(stream: str) -> dict[str, float]:
        prefix = f"{stream}_"
        return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}

    speech, text, pairs = map(of, STREAMS)
    if speech and (warning := best_rq.health_check(speech, after_warmup)):
        return warning
    if after_warmup and text and text["masked_accuracy"] < BARELY_BETTER * text["majority"]:
        return (
            f"text: {text['masked_accuracy']:.1%} of the masked tokens are right where guessing the most frequent one "
            f"gets {text['majority']:.1%}. The model reads nothing from context: give the text stream more weight, or "
            "lower optimizer.schedule.peak"
        )
    if after_warmup and pairs and pairs["blank"] > ALL_BLANK:
        return (
            f"pairs: {pairs['blank']:.1%} of the frames are blank: CTC is still on the plateau where it starts. Give "
            "the pairs more weight or start with short ones (shortest_first_epochs), or lower optimizer.schedule.peak"
        )
    return None
