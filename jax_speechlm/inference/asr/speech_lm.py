"""Text generation from audio by a trained speech-language model: greedy, beam search or sampling."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.batching.speech import Batch as HostBatch
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.lm.generate import GREEDY, Beam, Continuations, Sampling, check_counts, method_of
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.asr.base import Transcriber, Transcription
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.lm.generation import Continuation, generate, prompt_keys, read_continuations
from jax_speechlm.inference.predictor import rows_by_id
from jax_speechlm.inference.segmentation import AudioWindow, Recording, blocks_of, in_batches
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.models.speech_lm import SpeechTransformer
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import LoRA, merge
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.training.runs import LoadedRun

TOKENS_PER_SECOND = 25
"""Limit on generated tokens per second of audio: the fastest speech in characters."""

SPARE_TOKENS = 16
"""Tokens allowed in addition, for short clips."""


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechLanguageModel(Transcriber):
    """A checkpoint's encoder, adapter and language model, with LoRA merged, and the search `method`."""

    run: LoadedRun
    method: Sampling | Beam = GREEDY

    @classmethod
    def load(
        cls,
        path: str | Path,
        decoding: Decoding = Decoding(),  # noqa: B008  frozen
        ensemble: Sequence[str | Path] = (),
    ) -> "SpeechLanguageModel":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder.

        Raises:
          CheckpointError: no checkpoint can be read, or it is not of a speech-language model.
          ValueError: `decoding` has a language model or phrases, or `ensemble` members, which only CTC decoding uses.
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
        return cls(dataclasses.replace(run, params=params), method)

    @property
    def abilities(self) -> tuple[str, ...]:
        return ("transcribe", "generate") if self.task == "transcribe" else ("generate",)

    @property
    def task(self) -> str:
        return self.experiment.objective.task

    @property
    def decoding_description(self) -> str:
        return f"beam {self.method.size}" if isinstance(self.method, Beam) else "greedy"

    def transcribe_batches(self, batches: Iterable[Batch]) -> dict[int, Transcription]:
        """Generates the best text for each row; returns it with its log-probability per token."""
        return {row: Transcription(best.text, _per_token(best)) for row, (best, *_) in self.encode(batches).items()}

    def encode(self, batches: Iterable[Batch]) -> dict[int, list[Continuation]]:
        """Generates all answers for each row; returns them by `example_id`."""
        return {row: answers for batch in batches for row, answers in self.answers(batch).items()}

    def utterances(
        self, windows: Iterable[tuple[AudioWindow, list[Continuation] | None]]
    ) -> Iterator[tuple[AudioWindow, list[Continuation]]]:
        """Returns the windows that are not silent, each one utterance."""
        return ((window, answers) for window, answers in windows if answers is not None)

    def decode(self, utterances: Sequence[tuple[AudioWindow, list[Continuation]]]) -> list[Segment]:
        """Returns the best answer to each window as a segment, without word times."""
        return [
            Segment(
                window.start / self.experiment.sample_rate,
                window.end / self.experiment.sample_rate,
                answers[0].text,
                _per_token(answers[0]),
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
          Answers by `example_id`: one, or the hypotheses of a beam, best first. If the model's probabilities are not
          finite, one empty text of log-probability -inf.
        """
        if keys is None:
            keys = jax.random.split(jax.random.key(0), len(batch["example_id"]))  # unused by greedy and beam search
        method = method or self.method
        rows = rows_by_id(lambda batch: self._answer(self.params, dict(batch), keys, method=method), [batch])
        nothing = [Continuation("", -math.inf, 0, False)]
        return {
            row: read_continuations(Continuations(*arrays), self.vocabulary, self.tokenizer.decode) or nothing
            for row, arrays in rows.items()
        }

    def generate(
        self,
        recordings: Sequence[Recording],
        method: Sampling | Beam,
        *,
        samples: int = 1,
        seed: int = 0,
    ) -> list[list[Continuation]]:
        """Generates answers to recordings. Each depends on its recording, the method and the seed alone.

        A beam search returns its hypotheses, best first, instead of `samples`. Unreadable files raise `AudioError`.
        """
        check_counts(samples=samples)
        audio = [np.concatenate(list(blocks_of(recording, self.experiment.sample_rate))) for recording in recordings]
        draws = 1 if isinstance(method, Beam) else samples
        keys = [prompt_keys(seed, part.tobytes(), draws) for part in audio]
        results: list[list[Continuation]] = [[] for _ in audio]
        for number in range(draws):
            for batch in in_batches(audio):
                batch_keys = jnp.stack([keys[row][number] for row in batch["example_id"]])
                for row, answers in self.answers(batch, batch_keys, method).items():
                    results[row] += answers
        return results

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @functools.cached_property
    def _answer(self):
        experiment = self.experiment
        config = experiment.model.replace(lora=LoRA())
        graphdef = functional.declare(lambda rngs: SpeechTransformer(config, self.vocabulary.size, rngs=rngs)).graphdef
        before, after = experiment.objective.prompt_ids(self.tokenizer)

        def run(params: Params, batch: Batch, keys: Array, *, method: Sampling | Beam) -> Continuations:
            model = functional.bind(graphdef, params)
            speech, length_B = model.encode_speech(*features(batch, experiment.frontend, None))
            nothing = jnp.zeros((len(length_B), 1, 0), jnp.int32)
            answers = nothing, jnp.zeros_like(length_B)[:, None]
            num_prompt = len(before) + len(after)
            sequence = model.lay_out(before, speech, length_B, after, *answers, num_text=num_prompt)
            start_B = sequence.start[:, 0]

            def most_tokens(samples):
                return samples * TOKENS_PER_SECOND // experiment.sample_rate + SPARE_TOKENS

            context = start_B + most_tokens(batch["audio_length"])
            limits = {"max_new": most_tokens(batch["audio"].shape[1]), "context": context}
            prompt = model.transformer, self.vocabulary, sequence.vectors, start_B
            return generate(*prompt, keys, method, **limits)

        return jax.jit(run, static_argnames="method")


def _per_token(answer: Continuation) -> float:
    return answer.log_prob / max(1, answer.num_tokens)


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
            line = {"file": str(file), **each._asdict()}
            print(json.dumps(line, ensure_ascii=False) if format == "json" else each.text, flush=True)
