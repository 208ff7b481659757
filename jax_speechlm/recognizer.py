"""A trained checkpoint, or an ensemble of them, ready to turn audio into text."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data_pipelines import tokenizers
from data_pipelines.loader import Batch as HostBatch
from data_pipelines.paths import AnyPath
from jax_speechlm.batch import Batch
from jax_speechlm.decoder import Decoder, Decoding, Posteriors
from jax_speechlm.decoding.greedy import best_path, collapse
from jax_speechlm.experiment import Experiment
from jax_speechlm.models.functional import Params
from jax_speechlm.objectives.base import Objective
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer
from jax_speechlm.transcriber import Heard, Transcriber


class _Member(NamedTuple):
    """One checkpoint of an ensemble."""

    checkpoint: AnyPath
    step: int
    experiment: Experiment
    tokenizer: tokenizers.Tokenizer
    params: Params
    objective: Objective


@dataclasses.dataclass(frozen=True)
class Recognizer(Transcriber):
    """A checkpoint's model, front end and tokenizer. All that `load` needs is the checkpoint's path.

    An ensemble's posteriors are the mean of its members' probabilities, frame by frame; checkpoint, step and experiment
    are the first one's. So it is a mixture: what it gives sums to one, and no member can veto what others hear by a
    probability near zero.

    Attributes:
      params: of each member.
      members: the checkpoints.
    """

    checkpoint: AnyPath
    step: int
    experiment: Experiment
    tokenizer: tokenizers.Tokenizer
    params: tuple[Params, ...]
    decoder: Decoder | None
    members: tuple[AnyPath, ...]
    _spell: Callable[[tuple[Params, ...], Batch], jax.Array]
    _posteriors: Callable[[tuple[Params, ...], Batch], tuple[jax.Array, jax.Array]]

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | os.PathLike] = (),
    ) -> "Recognizer":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, and the language models of `decoding`.

        Args:
          ensemble: further runs, of any size, with the first one's tokenizer and frame rate.

        Raises:
          CheckpointError: there is no readable checkpoint, its model was not trained to spell, or an ensemble's
            members do not fit together.
          DataError: a language model cannot be read, or does not fit the checkpoint's tokenizer.
        """
        members = [_read(each) for each in (path, *ensemble)]
        first = members[0]
        for other in members[1:]:
            _check_fits(first, other)
        decoder = None if decoding.is_greedy else Decoder(decoding, first.tokenizer)

        def posteriors(params: tuple[Params, ...], batch: Batch) -> tuple[jax.Array, jax.Array]:
            heard = [member.objective.logits(own, batch) for member, own in zip(members, params, strict=True)]
            log_probs = [jax.nn.log_softmax(logits_BxTxV.astype(jnp.float32)) for logits_BxTxV, _ in heard]
            return mean_probability(log_probs), heard[0][1]

        def spell(params: tuple[Params, ...], batch: Batch) -> jax.Array:
            if len(members) == 1:
                return best_path(*first.objective.logits(params[0], batch))
            return best_path(*posteriors(params, batch))

        return cls(
            first.checkpoint,
            first.step,
            first.experiment,
            first.tokenizer,
            tuple(member.params for member in members),
            decoder,
            tuple(member.checkpoint for member in members),
            jax.jit(spell),
            jax.jit(posteriors),
        )

    @property
    def how(self) -> str:
        how = "greedy" if self.decoder is None else str(self.decoder.decoding)
        return how if len(self.members) == 1 else f"{how}, ensemble of {', '.join(map(str, self.members))}"

    def recognize(self, batches: Iterable[Batch]) -> dict[int, str]:
        """The text of every row of the batches, by `example_id`; filler rows are left out."""
        texts = {}
        for batch in batches:
            if self.decoder is not None:
                heard = self._hear(batch)
                texts.update(zip(heard, self.decoder.decode(list(heard.values())), strict=True))
                continue
            spelled = collapse(jax.device_get(self._spell(self.params, batch)))
            for row, example in enumerate(batch["example_id"]):
                if example >= 0:
                    texts[int(example)] = self.tokenizer.decode(spelled[row])
        return texts

    def hear(self, batches: Iterable[Batch]) -> dict[int, Heard]:
        """The text of every row's best path, and the path's log-probability over the number of tokens."""
        found = {}
        for row, log_probs in self.posteriors(batches).items():
            (ids,) = collapse(log_probs.argmax(-1)[None])
            found[row] = Heard(self.tokenizer.decode(ids), float(log_probs.max(-1).sum()) / max(1, len(ids)))
        return found

    def posteriors(self, batches: Iterable[Batch]) -> dict[int, Posteriors]:
        """The log probabilities float32 [frames, ids] of every row of the batches, by `example_id`, without fillers."""
        return {row: log_probs for batch in batches for row, log_probs in self._hear(batch).items()}

    def _hear(self, batch: HostBatch) -> dict[int, Posteriors]:
        log_probs, lengths = jax.device_get(self._posteriors(self.params, batch))
        return {
            int(example): log_probs[row, : lengths[row]].copy()  # not a view of the whole batch
            for row, example in enumerate(batch["example_id"])
            if example >= 0
        }


def mean_probability(log_probs: Sequence[Float[Array, "*each"]]) -> Float[Array, "*each"]:
    """log of the mean of exp; one alone comes back as it is."""
    if len(log_probs) == 1:
        return log_probs[0]
    return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - jnp.log(len(log_probs))


def _read(path: str | os.PathLike) -> _Member:
    checkpoint = ckpt.find(path)
    params, meta = ckpt.read_params(checkpoint, quantized=True)
    experiment = Experiment.model_validate(meta["experiment"])
    tokenizer = saved_tokenizer(meta)
    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    if objective.logits is None:
        raise ckpt.CheckpointError(
            f"{checkpoint}: was trained by {experiment.objective.kind}, which does not spell speech. Name a run "
            f"that was trained by ctc; from a pretrained encoder: jax-speechlm finetune --from {path}"
        )
    return _Member(checkpoint, meta["step"], experiment, tokenizer, jax.device_put(params), objective)


def _check_fits(first: _Member, other: _Member) -> None:
    if first.tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise ckpt.CheckpointError(
            f"{other.checkpoint}: has another tokenizer ({other.tokenizer.kind}, {other.tokenizer.vocab_size} ids) "
            f"than {first.checkpoint} ({first.tokenizer.kind}, {first.tokenizer.vocab_size} ids): it needs one; "
            "reports of different tokenizers can be joined by jax-speechlm rover"
        )
    frames = [(mel.flavour, mel.frame_samples) for mel in (each.experiment.frontend.mel for each in (first, other))]
    if frames[0] != frames[1]:
        raise ckpt.CheckpointError(
            f"{other.checkpoint}: has a frame every {frames[1][1]} samples ({frames[1][0]}), {first.checkpoint} every "
            f"{frames[0][1]} ({frames[0][0]}): an ensemble needs frames in common; reports can be joined by "
            "jax-speechlm rover"
        )
