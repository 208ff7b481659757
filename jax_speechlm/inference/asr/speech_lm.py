"""Text generation from audio by a trained speech-language model: greedy, beam search or sampling."""

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.batching.speech import Batch as HostBatch
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, seed_key
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.lm.generate import (
    GREEDY,
    Beam,
    Continuations,
    Sampling,
    beam_search,
    check_counts,
    method_of,
    sample,
)
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.asr.base import Transcriber, Transcription
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.lm.causal import Continuation
from jax_speechlm.inference.segmentation import AudioWindow, Recording, blocks_of, in_batches
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.models.speech_lm import SpeechTransformer
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import LoRA, merge
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.recipes.experiment import Experiment

TOKENS_PER_SECOND = 25
"""Limit on generated tokens per second of audio: the fastest speech in characters."""

SPARE_TOKENS = 16
"""Tokens allowed in addition, for short clips."""


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechLanguageModel(Transcriber):
    """A checkpoint's encoder, adapter and language model, with LoRA merged.

    Attributes:
      method: the search, greedy or beam.
    """

    checkpoint: Path
    step: int
    experiment: Experiment = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    method: Sampling | Beam = GREEDY

    @classmethod
    def load(
        cls,
        path: str | Path,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | Path] = (),
    ) -> "SpeechLanguageModel":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Args:
          decoding: greedy, or a beam search of `beam_size`.
          ensemble: must be empty; only CTC runs can form an ensemble.

        Raises:
          CheckpointError: no checkpoint can be read, or it is not of a speech-language model.
          ValueError: `decoding` names a language model or phrases, which only CTC decoding uses.
        """
        if decoding.lm or decoding.boost or decoding.rescore:
            raise ValueError(
                f"{path}: is a language model itself: --lm, --boost and --rescore are for runs that were trained by ctc"
            )
        if ensemble:
            raise ValueError(f"{path}: was trained by speech_lm; only runs with CTC posteriors make an ensemble")
        run = LoadedRun.load(path, SpeechLM, "answer to speech")
        params, _ = merge(run.params, run.experiment.model.lora)
        method = GREEDY if decoding.is_greedy else Beam(size=decoding.beam_size)
        return cls(run.checkpoint, run.step, run.experiment, run.tokenizer, params, method)

    @property
    def abilities(self) -> tuple[str, ...]:
        return ("transcribe", "generate") if self.task == "transcribe" else ("generate",)

    @property
    def task(self) -> str:
        return self.experiment.objective.task

    @property
    def decoding_description(self) -> str:
        return f"beam {self.method.size}" if isinstance(self.method, Beam) else "greedy"

    def recognize(self, batches: Iterable[Batch]) -> dict[int, str]:
        """Generates the best text for each row; returns texts by `example_id`, without filler rows."""
        return {row: found[0].text for batch in batches for row, found in self.answers(batch).items()}

    def transcribe_batches(self, batches: Iterable[Batch]) -> dict[int, Transcription]:
        """Transcribes as `recognize`, with the log-probability per token."""
        found = ((row, answers[0]) for batch in batches for row, answers in self.answers(batch).items())
        return {row: Transcription(best.text, best.log_prob / best.num_tokens) for row, best in found}

    def encode(self, batches: Iterable[Batch]) -> dict[int, list[Continuation]]:
        """Generates all answers for each row; returns them by `example_id`."""
        return {row: found for batch in batches for row, found in self.answers(batch).items()}

    def utterances(
        self, heard: Iterable[tuple[AudioWindow, list[Continuation] | None]]
    ) -> Iterator[tuple[AudioWindow, list[Continuation]]]:
        """Returns the windows that are not silent, each one utterance."""
        return ((window, answers) for window, answers in heard if answers is not None)

    def decode(self, utterances: Sequence[tuple[AudioWindow, list[Continuation]]]) -> list[Segment]:
        """Returns the best answer to each window as a segment, without word times."""
        return [
            Segment(
                window.start / self.experiment.sample_rate,
                window.end / self.experiment.sample_rate,
                answers[0].text,
                answers[0].log_prob / answers[0].num_tokens,
                alternatives=tuple(each.text for each in answers) if isinstance(self.method, Beam) else (),
            )
            for window, answers in utterances
        ]

    def answers(
        self, batch: HostBatch, keys: Key[Array, " batch"] | None = None, method: Sampling | Beam | None = None
    ) -> dict[int, list[Continuation]]:
        """Generates answers to the rows of a batch, independent of the other rows and of padding.

        Args:
          keys: random keys [rows], for sampling.
          method: replaces the model's own method.

        Returns:
          Answers by `example_id`: one, or the hypotheses of a beam, best first.
        """
        rows = len(batch["example_id"])
        if keys is None:
            keys = jax.random.split(jax.random.key(0), rows)  # unused by greedy and beam search
        found = jax.device_get(self._answer(self.params, dict(batch), keys, method=method or self.method))
        texts = {}
        for row, example in enumerate(batch["example_id"]):
            if example >= 0:
                alternatives = (np.atleast_1d(part[row]) for part in found[1:])
                ids = found.tokens[row].reshape(-1, found.tokens.shape[-1])
                texts[int(example)] = [self._read(*each) for each in zip(ids, *alternatives, strict=True)]
                texts[int(example)] = [each for each in texts[int(example)] if math.isfinite(each.log_prob)]
        return texts

    def generate(
        self,
        recordings: Sequence[Recording],
        method: Sampling | Beam,
        *,
        samples: int = 1,
        seed: int = 0,
    ) -> list[list[Continuation]]:
        """Generates answers to recordings. Each depends on its recording, the method and the seed alone.

        Args:
          samples: answers drawn per recording; a beam search returns its hypotheses instead, best first.

        Raises:
          AudioError: a recording cannot be read.
          ValueError: `samples` is below 1.
        """
        check_counts(samples=samples)
        heard = [np.concatenate(list(blocks_of(each, self.experiment.sample_rate))) for each in recordings]
        found: list[list[Continuation]] = [[] for _ in heard]
        roots = [jax.random.fold_in(seed_key(seed), zlib.crc32(each.tobytes())) for each in heard]
        for number in range(1 if isinstance(method, Beam) else samples):
            keys = [jax.random.fold_in(root, number) for root in roots]
            for batch in in_batches(heard):
                answers = self.answers(batch, jnp.stack([keys[row] for row in batch["example_id"]]), method)
                for row, each in answers.items():
                    found[row] += each
        return found

    def _read(self, ids: Int[np.ndarray, " new"], length: np.integer, log_prob: np.floating) -> Continuation:
        found = ids[:length].tolist()
        ended = bool(found) and found[-1] in self.vocabulary.ends
        text = self.tokenizer.decode(found[: len(found) - ended])
        return Continuation(text, float(log_prob), len(found), ended)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @functools.cached_property
    def _answer(self):
        experiment = self.experiment
        config = experiment.model.replace(lora=LoRA())

        def make(rngs):
            return SpeechTransformer(config, self.vocabulary.size, rngs=rngs)

        graphdef = functional.declare(make).graphdef
        before, behind = experiment.objective.prompt_ids(self.tokenizer)

        def run(params: Params, batch: Batch, keys: Array, *, method: Sampling | Beam) -> Continuations:
            model = functional.bind(graphdef, params)
            speech, length_B = model.encode_speech(*features(batch, experiment.frontend, None))
            nothing = jnp.zeros((len(length_B), 0), jnp.int32)
            sequence = model.lay_out(before, speech, length_B, behind, nothing, jnp.zeros_like(length_B))

            def room_of(samples):
                return samples * TOKENS_PER_SECOND // experiment.sample_rate + SPARE_TOKENS

            limits = {"max_new": room_of(batch["audio"].shape[1]), "context": None}
            limits["context"] = sequence.start + room_of(batch["audio_length"])
            prompt = model.transformer, self.vocabulary, sequence.vectors, sequence.start
            if isinstance(method, Beam):
                return beam_search(*prompt, method, **limits)
            return sample(*prompt, keys, method, **limits)

        return jax.jit(run, static_argnames="method")


def answer_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    samples: int = 1,
    sampling: OmitArgPrefixes[Sampling] = Sampling(),  # noqa: B008  frozen
    beam_size: int = 0,
    length_penalty: float = 1.0,
    seed: int = 0,
    format: Literal["text", "json"] = "text",
) -> None:
    """Generates text from audio files by the model's task: a transcript, a translation, a continuation or an answer.

    Args:
      checkpoint: a speech_lm run's directory, or one of its checkpoints/<step> folders.
      files: audio files of any format; the result of one does not depend on the others.
      samples: texts drawn for each file.
      sampling: sampling of tokens; --temperature 0 always takes the most likely.
      beam_size: above 0: beam search instead of sampling, with this many hypotheses, all of which are printed.
      length_penalty: of the beam search: 0 compares texts by probability, 1 by its geometric mean over tokens.
      seed: seed of sampling.
      format: "text" prints one text per line; "json" prints JSON lines with file, text, log_prob (nats), num_tokens,
        ended.
    """
    method = method_of(sampling, beam_size, length_penalty)
    check_counts(samples=samples)
    model = SpeechLanguageModel.load(checkpoint)
    for file in files:
        for each in model.generate([file], method, samples=samples, seed=seed)[0]:
            said = {"file": str(file), **each._asdict()}
            print(json.dumps(said, ensure_ascii=False) if format == "json" else each.text, flush=True)
