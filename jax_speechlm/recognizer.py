"""A trained checkpoint, ready to turn audio into text."""

import dataclasses
import os
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from data_pipelines import tokenizers
from data_pipelines.loader import Batch as HostBatch
from data_pipelines.paths import AnyPath
from jax_speechlm.batch import Batch
from jax_speechlm.decoder import Decoder, Decoding, Posteriors
from jax_speechlm.decoding.greedy import best_path, collapse
from jax_speechlm.experiment import Experiment
from jax_speechlm.models.functional import Params
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer
from jax_speechlm.transcriber import Heard, Transcriber


@dataclasses.dataclass(frozen=True)
class Recognizer(Transcriber):
    """A checkpoint's model, front end and tokenizer. All that `load` needs is the checkpoint's path."""

    checkpoint: AnyPath
    step: int
    experiment: Experiment
    tokenizer: tokenizers.Tokenizer
    params: Params
    decoder: Decoder | None
    _spell: Callable[[Params, Batch], jax.Array]
    _posteriors: Callable[[Params, Batch], tuple[jax.Array, jax.Array]]

    @classmethod
    def load(cls, path: str | os.PathLike, decoding: Decoding = Decoding()) -> "Recognizer":  # noqa: B008  frozen
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder, and the language models of `decoding`.

        Raises:
          CheckpointError: there is no readable checkpoint, or its model was not trained to spell.
          DataError: a language model cannot be read, or does not fit the checkpoint's tokenizer.
        """
        checkpoint = ckpt.find(path)
        params, meta = ckpt.read_params(checkpoint)
        experiment = Experiment.model_validate(meta["experiment"])
        tokenizer = saved_tokenizer(meta)
        objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
        if objective.logits is None:
            raise ckpt.CheckpointError(
                f"{checkpoint}: was trained by {experiment.objective.kind}, which does not spell speech. Name a run "
                f"that was trained by ctc; from a pretrained encoder: jax-speechlm finetune --from {path}"
            )
        decoder = None if decoding.is_greedy else Decoder(decoding, tokenizer)
        params = jax.device_put(params)
        spell = jax.jit(lambda params, batch: best_path(*objective.logits(params, batch)))

        @jax.jit
        def posteriors(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            logits_BxTxV, length_B = objective.logits(params, batch)
            return jax.nn.log_softmax(logits_BxTxV.astype(jnp.float32)), length_B

        return cls(checkpoint, meta["step"], experiment, tokenizer, params, decoder, spell, posteriors)

    @property
    def how(self) -> str:
        return "greedy" if self.decoder is None else str(self.decoder.decoding)

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
