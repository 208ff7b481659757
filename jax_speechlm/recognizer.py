"""A trained checkpoint, ready to turn audio into text."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int16
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines import audio, plan, tokenizers
from data_pipelines.loader import Batch as HostBatch
from data_pipelines.paths import AnyPath
from jax_speechlm.batch import Batch
from jax_speechlm.decoder import Decoder, Decoding, Posteriors
from jax_speechlm.decoding.greedy import best_path, collapse
from jax_speechlm.experiment import Experiment
from jax_speechlm.models.functional import Params
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer

_PAUSE_SECONDS = 0.2  # what counts as a place to cut a long recording


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was heard in one file; `error` says why nothing could be, and is None otherwise."""

    file: str
    text: str
    seconds: float
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Recognizer:
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

    def transcribe(self, files: Sequence[str | Path], *, max_seconds: float = 30.0) -> Iterator[Transcript]:
        """Transcribes audio files of any format, rate, length and number of channels, in order.

        A recording longer than `max_seconds` is cut at its quietest places and its parts' texts are joined. A file that
        cannot be read gives a `Transcript` with an error and does not stop the others.
        """
        for file in files:
            try:
                samples = audio.decode(file)
            except audio.AudioError as error:
                yield Transcript(str(file), "", 0.0, str(error))
                continue
            parts = list(cut_at_pauses(samples, max_seconds))
            texts = self.recognize(in_batches(parts))
            text = " ".join(texts[number] for number in range(len(parts)))
            yield Transcript(str(file), " ".join(text.split()), len(samples) / audio.SAMPLE_RATE)


def in_batches(parts: Sequence[Int16[np.ndarray, "..."]]) -> Iterator[Batch]:
    """Recordings as batches; `example_id` is the place among them."""
    lengths = np.array([len(part) for part in parts])
    # Coarse shapes, so that many files of like length share one compiled program.
    planned = plan.make_eval_plan(lengths, seconds_per_batch=60.0, batch_multiple=1, frame_samples=2 * 16_000)
    for step in range(planned.steps_per_epoch):
        rows = planned.batch(step).rows
        bucket = planned.buckets[planned.batch(step).bucket]
        batch = {
            "audio": np.zeros((len(rows), bucket.num_samples), np.int16),
            "audio_length": np.where(rows >= 0, lengths[rows], 0).astype(np.int32),
            "example_id": rows.astype(np.int32),
            "weight": (rows >= 0).astype(np.float32),
        }
        for place, row in enumerate(rows):
            if row >= 0:
                batch["audio"][place, : lengths[row]] = parts[row]
        yield batch


def cut_at_pauses(samples: Int16[np.ndarray, " samples"], max_seconds: float) -> Iterator[Int16[np.ndarray, "..."]]:
    """Cuts a recording into parts of at most `max_seconds`, each at the quietest place of its second half."""
    limit, pause = int(max_seconds * audio.SAMPLE_RATE), int(_PAUSE_SECONDS * audio.SAMPLE_RATE)
    while len(samples) > limit:
        energy = np.cumsum(samples[limit // 2 : limit].astype(np.float64) ** 2)
        cut = limit // 2 + int((energy[pause:] - energy[:-pause]).argmin()) + pause // 2
        yield samples[:cut]
        samples = samples[cut:]
    yield samples


def transcribe_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    decoding: OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    format: Literal["text", "json"] = "text",
    max_seconds: float = 30.0,
) -> None:
    """Turns audio files into text. Any format, sample rate, length and number of channels.

    Args:
      checkpoint: a finetuned run's directory, or one of its checkpoints/<step> folders.
      files: the audio files.
      decoding: how the text is found; weights that `eval` tuned are in its report.
      format: "text" prints a line a file; "json" prints JSON lines with the file, its seconds, text and error.
      max_seconds: longer recordings are cut at pauses into parts of at most this length.
    """
    recognizer, failed = Recognizer.load(checkpoint, decoding), 0
    for transcript in recognizer.transcribe(files, max_seconds=max_seconds):
        failed += transcript.error is not None
        if format == "json":
            print(json.dumps(dataclasses.asdict(transcript), ensure_ascii=False), flush=True)
        elif transcript.error is None:
            print(f"{transcript.file}\t{transcript.text}" if len(files) > 1 else transcript.text, flush=True)
        else:
            print(f"error: {transcript.error}", file=sys.stderr)
    if failed:
        raise audio.DataError(f"{failed} of {len(files)} files could not be transcribed")
