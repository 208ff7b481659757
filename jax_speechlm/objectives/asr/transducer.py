"""Transducers, RNN-T (Graves 2012) and TDT (Xu et al. 2023), with an auxiliary CTC loss."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.core.segments import Lengths, Segments
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig, forward_flops
from jax_speechlm.models.transducer import TransducerConfig, TransducerModel
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc_loss import packed_ctc_loss
from jax_speechlm.objectives.asr.transducer_loss import check_durations, packed_transducer_loss
from jax_speechlm.objectives.base import (
    Metrics,
    Objective,
    ObjectiveConfig,
    check_features,
    check_no_crop,
    on_params,
    row_keys,
)
from jax_speechlm.objectives.heads.base import encode, encode_layers
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel import sequence

_CHUNK_LOGITS = {"cpu": 1 << 20, "gpu": 1 << 25, "tpu": 1 << 25}
"""Logits that a device computes at a time: on CPU those that its cache holds, else 128 MiB of float32."""


class Transducer(ObjectiveConfig):
    """Settings of the transducer objective.

    Attributes:
      durations: durations of TDT in frames, among them 1, such as (0, 1, 2, 3, 4); empty for RNN-T.
      sigma: TDT's logit under-normalisation, which favours long durations (0.05 in Xu et al.).
      network: predictor and joint network.
      ctc_weight: share of the CTC loss of a linear head on the encoder in the total; 0 for no head. The head guides the
        encoder early in training, measures WER during training, and aligns.
    """

    kind: Literal["transducer"] = "transducer"
    durations: Annotated[tuple[NonNegativeInt, ...], AfterValidator(check_durations)] = ()
    sigma: NonNegativeFloat = 0.05
    network: TransducerConfig = TransducerConfig()
    ctc_weight: Annotated[float, Field(ge=0, lt=1)] = 0.3

    def make_model(self, model: EncoderConfig, tokenizer: Tokenizer) -> functional.MakeModule:
        """Returns the constructor of the model."""
        shape = self.network, tokenizer.vocab_size, len(self.durations)
        return lambda rngs: TransducerModel(model, *shape, ctc=self.ctc_weight > 0, rngs=rngs)

    def build(self, model: EncoderConfig, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over target tokens; an empty transcript counts as one target.
        Metrics: `loss` and, with a CTC head, its parts `transducer` and `ctc`, and `infeasible` (share of rows without
        an alignment).
        """
        check_features(model, frontend.mel)
        if tokenizer is None:
            raise ValueError("a transducer needs a tokenizer: set data.tokenizer, or train on sets with transcripts")
        check_no_crop(frontend, "transcript")
        make, outputs = self.make_model(model, tokenizer), tokenizer.vocab_size + len(self.durations)

        def score(module: TransducerModel, batch: Batch, key: PRNGKeyArray | None) -> Metrics:
            return self.score(module, self.forward(module, batch, key, frontend), batch)

        def ctc_logits(module: TransducerModel, batch: Batch) -> tuple[Array, Lengths]:
            hidden_BxTxD, lengths = encode(module.encoder, batch, frontend, None)
            return module.ctc_logits(hidden_BxTxD), lengths

        def flops(batch: Mapping[str, Any]) -> float:
            rows, samples = batch["audio"].shape
            num_vectors, places = frontend.mel.num_frames(samples), batch["tokens"].shape[-1] + 1
            nodes = rows * model.num_frames(num_vectors) * places
            return forward_flops(model, num_vectors, rows) + 2.0 * nodes * self.network.dim * outputs

        parts = {"logits": on_params(make, ctc_logits)} if self.ctc_weight else {}
        return Objective.of(make, score, batch_flops=flops, **parts)

    def forward(
        self,
        module: TransducerModel,
        batch: Batch,
        key: PRNGKeyArray | None,
        frontend: FrontEnd,
        taps: tuple[int, ...] = (),
    ) -> "TransducerOutput":
        """Runs encoder and predictor, for evaluation without a key; `taps` are layer counts to return."""
        batch = by_utterance(batch)
        encode_key, predictor_key = (None, None) if key is None else jax.random.split(key)
        hidden_BxTxD, tapped, segments = encode_layers(module.encoder, batch, frontend, encode_key, taps)
        predictor_BxNxLxJ = module.predict(batch["tokens"], row_keys(predictor_key, batch))
        return TransducerOutput(hidden_BxTxD, predictor_BxNxLxJ, tapped, segments)

    def score(self, module: TransducerModel, output: "TransducerOutput", batch: Batch) -> Metrics:
        """Computes the loss and its parts, weighted by the number of targets."""
        batch, hidden_BxTxD, predictor_BxNxLxJ = by_utterance(batch), output.hidden, output.predictor
        hidden_BxTxD = meshes.shard_batch_dim(hidden_BxTxD)  # whole in time: the loss scans over parts of it
        targets = output.segments.segment(hidden_BxTxD.shape[1]), batch["tokens"], batch["token_length"]
        loss_BxN, feasible_BxN = packed_transducer_loss(
            module.project(hidden_BxTxD),
            predictor_BxNxLxJ,
            module.joint.kernel[...],
            module.joint.bias[...],
            *targets,
            durations=self.durations,
            sigma=self.sigma if self.durations else 0.0,
            activation=jax.nn.relu,
            chunk=_frames_at_a_time(len(hidden_BxTxD), predictor_BxNxLxJ.shape[2] * module.joint.kernel.shape[1]),
        )
        weight_BxN = batch["weight"]
        learnt_BxN = weight_BxN * feasible_BxN
        sums = {"loss": jnp.sum(learnt_BxN * loss_BxN)}
        if self.ctc_weight:
            ctc_loss_BxN, _ = packed_ctc_loss(module.ctc_logits(hidden_BxTxD), *targets)
            sums |= {"transducer": sums["loss"], "ctc": jnp.sum(learnt_BxN * ctc_loss_BxN)}
            sums["loss"] = (1 - self.ctc_weight) * sums["transducer"] + self.ctc_weight * sums["ctc"]
        num_targets = jnp.sum(learnt_BxN * jnp.maximum(batch["token_length"], 1))
        metrics = {name: (total, num_targets) for name, total in sums.items()}
        return metrics | {"infeasible": (jnp.sum(weight_BxN * ~feasible_BxN), jnp.sum(weight_BxN))}


class TransducerOutput(NamedTuple):
    """Output of encoder and predictor of a transducer for a batch."""

    hidden: Float[Array, "batch time dim"]
    predictor: Float[Array, "batch utterances places joint"]
    tapped: dict[int, Float[Array, "batch time dim"]]  # hidden states by layer count, for the requested layers
    segments: Segments  # utterances of the rows in frames


def _frames_at_a_time(rows: int, logits_per_frame: int) -> int:
    """Returns the frames of a row whose logits on one device, of its rows, are those of a chunk."""
    shards = sequence.num_devices(meshes.BATCH_AXES)
    own_rows = rows // shards if rows % shards == 0 else rows
    return max(1, _CHUNK_LOGITS[meshes.platform()] // (own_rows * logits_per_frame))
