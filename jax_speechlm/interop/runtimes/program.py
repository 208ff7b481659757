"""A CTC recognizer as one function of arrays, from samples to tokens: what the exports to other runtimes share.

    run(weights, audio, audio_length) -> {"log_probs": ..., "num_frames": ..., "tokens": ...}

Front end and greedy decoding are inside, in float32. Weights are arguments, by dotted name.
"""

import dataclasses
import math
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float32, Int, Int16, Int32

from data_pipelines.core.audio_format import SAMPLE_RATE
from data_pipelines.core.paths import AnyPath
from data_pipelines.tokenizers.base import BLANK, Tokenizer
from jax_speechlm.decoding.ctc.greedy import best_path, collapse
from jax_speechlm.frontend.logmel import HOP, WINDOW, LogMel
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.interop.folders import (
    RECORD,
    ExportError,
    FailedCheck,
    read_record,
    require_free,
    versions,
    write_json,
    written,
)
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn.attention.relative import MAX_FULL_SCORES
from jax_speechlm.tasks import TASKS, task_of

VERSION = 1
"""Of the record beside an exported recognizer, and of the function that it describes; readers refuse a higher one."""

TOLERANCE = 1e-4
"""How far log-probabilities may lie from the original's, in nats."""

Weights = Mapping[str, Any]
Outputs = Mapping[str, Any]
Run = Callable[[Int16[np.ndarray, "batch samples"], Int32[np.ndarray, " batch"]], Outputs]


@dataclasses.dataclass(frozen=True)
class Program:
    """A recognizer that was trained by CTC, alone or with other objectives.

    Attributes:
      checkpoint: its folder.
      step: steps of training behind it.
      mel: its features.
      tokenizer: ids to text.
      weights: numpy float32 by dotted name: the parameters that recognition needs.
      logits: the objective's, over the nested parameters.
    """

    checkpoint: AnyPath
    step: int
    mel: LogMel
    tokenizer: Tokenizer
    weights: dict[str, np.ndarray]
    logits: Callable[..., tuple[Array, Array]]

    @classmethod
    def of(cls, run: LoadedRun) -> "Program":
        """A run's recognizer.

        Raises:
          ExportError: the run was not trained by CTC.
        """
        experiment, task = run.experiment, task_of(run.experiment.objective)
        if not task.runtimes:
            able = " or ".join(name for name, each in TASKS.items() if each.runtimes)
            raise ExportError(
                f"{run.checkpoint}: was trained by {task.name}; only recognizers that were trained by {able} are "
                "exported to other runtimes: name such a run"
            )
        if isinstance(experiment.model, FastConformerConfig):
            raise ExportError(
                f"{run.checkpoint}: its {experiment.model.kind} is not exported to other runtimes yet; --to hf is there"
            )
        # Nothing is differentiated, so nothing need be marked for rematerialisation.
        model = experiment.model.replace(dtype="float32", remat="none")
        logits = experiment.objective.build(model, experiment.frontend, run.tokenizer).logits
        weights = {name: np.asarray(value) for name, value in flatten_dict(run.params, sep=".").items()}
        program = cls(run.checkpoint, run.step, experiment.frontend.mel, run.tokenizer, weights, logits)
        return dataclasses.replace(program, weights=program._used())

    def _used(self) -> dict[str, np.ndarray]:
        shapes = jax.eval_shape(lambda: self.weights)
        audio, length = jax.ShapeDtypeStruct((1, self.samples[0]), np.int16), jax.ShapeDtypeStruct((1,), np.int32)
        kept = set(jax.export.export(jax.jit(self.run))(shapes, audio, length).module_kept_var_idx)
        return {name: self.weights[name] for number, name in enumerate(sorted(self.weights)) if number in kept}

    @property
    def samples(self) -> tuple[int, int]:
        """The fewest and the most samples that a row may be padded to: one frame, and what attention takes whole."""
        return WINDOW + (self.mel.stack - 1) * HOP, (MAX_FULL_SCORES * self.mel.stack - 1) * HOP

    def arguments(self, samples: int | None = None) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Audio and lengths: of one row of so many samples, or of symbols for the numbers of rows and samples."""
        batch = 1
        if samples is None:
            fewest, most = self.samples
            scope = jax.export.SymbolicScope((f"samples >= {fewest}", f"samples <= {most}"))
            batch, samples = jax.export.symbolic_shape("batch, samples", scope=scope)
        return jax.ShapeDtypeStruct((batch, samples), jnp.int16), jax.ShapeDtypeStruct((batch,), jnp.int32)

    def run(
        self,
        weights: Weights,
        audio: Int16[Array, "batch samples"],
        audio_length: Int[Array, " batch"],
    ) -> dict[str, Array]:
        """What is exported.

        Args:
          audio: at 16 kHz, the rows padded with anything to a length within `samples`.
          audio_length: samples of each row; may be 0.

        Returns:
          log_probs: natural logarithms, float32 [batch, frames, ids]; id 0 is the blank.
          num_frames: int32 [batch]; what lies behind so many frames has no meaning.
          tokens: int32 [batch, frames]: greedy decoding; a token's id at the frame where it begins, else 0.
        """
        batch = {"audio": audio, "audio_length": audio_length}
        logits_BxTxV, length_B = self.logits(unflatten_dict(weights, sep="."), batch)
        path_BxT = best_path(logits_BxTxV, length_B).astype(jnp.int32)
        before_BxT = jnp.pad(path_BxT[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
        return {
            "log_probs": jax.nn.log_softmax(logits_BxTxV.astype(jnp.float32)),
            "num_frames": length_B.astype(jnp.int32),
            "tokens": jnp.where(path_BxT == before_BxT, BLANK, path_BxT),
        }

    def text(self, tokens: Int[np.ndarray, " frames"]) -> str:
        """What a row of `tokens` spells."""
        return self.tokenizer.decode(int(number) for number in tokens if number != BLANK)

    def record(self, target: str, **more: Any) -> dict[str, Any]:
        """What `jax_speechlm.json` says of every target, and what it says besides of this one."""
        fewest, most = self.samples
        rows, frames = ["batch"], ["batch", "frames"]
        return {
            "format": "jax_speechlm recognizer",
            "version": VERSION,
            "target": target,
            "checkpoint": str(self.checkpoint),
            "made_by": {name: version(name) for name in ("jax_speechlm", "jax", "jaxlib")},
            "step": self.step,
            "sample_rate": SAMPLE_RATE,
            "samples": {"fewest": fewest, "most": most},
            "frame_seconds": self.mel.frame_samples / SAMPLE_RATE,
            "inputs": {
                "audio": {"dtype": "int16", "shape": ["batch", "samples"]},
                "audio_length": {"dtype": "int32", "shape": rows},
            },
            "outputs": {
                "log_probs": {"dtype": "float32", "shape": [*frames, self.tokenizer.vocab_size]},
                "num_frames": {"dtype": "int32", "shape": rows},
                "tokens": {"dtype": "int32", "shape": frames},
            },
            "tokenizer": {"kind": self.tokenizer.kind, "pieces": spelling(self.tokenizer)},
            **more,
        }


class Agreement(NamedTuple):
    """How an exported recognizer was found to compare with the original.

    Attributes:
      rows: utterances compared, over all batches.
      frames: and their frames.
      tokens: which greedy decoding found in them.
      difference: the largest between two log-probabilities, in nats.
    """

    rows: int
    frames: int
    tokens: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.rows} utterances, {self.frames} frames: log-probabilities differ by at most {self.difference:.1e} "
            f"nats, the {self.tokens} greedy tokens and their texts are the same"
        )


Write = Callable[[Program, Path], Run]
"""Writes a recognizer and its record into an empty folder; returns it as read back from there."""


def export(run: Path, out: Path, write: Write, lengths: Sequence[int] = (), *, consumers: Sequence[str]) -> Agreement:
    """Exports a run's recognizer: `out` appears once the new one was found to do what the old one does.

    Args:
      lengths: where the new one has a program for each of so many samples: what they are.
      consumers: modules that `write` reads the new one back with; the record names their versions as `read_by`.

    Raises:
      CheckpointError, ExportError: there is no such recognizer, or it cannot be exported, or not to there.
      FailedCheck: what was written gives other results.
    """
    require_free(out)
    program = Program.of(LoadedRun.read(run))
    fewest, most = program.samples
    if lengths and not fewest <= min(lengths) <= max(lengths) <= most:
        limits = f"{fewest / SAMPLE_RATE:.3f} to {most / SAMPLE_RATE:.0f}"
        raise ExportError(f"{program.checkpoint}: --seconds must lie within {limits} for this model")
    count = sum(value.size for value in program.weights.values())
    print(f"{program.checkpoint}: exporting {count:,} parameters", file=sys.stderr, flush=True)
    with written(out, {}) as folder:
        exported = write(program, folder)
        print("comparing with the original", file=sys.stderr, flush=True)
        agreement = check(program, exported, [(_ROWS, samples) for samples in lengths] or _SHAPES)
        read_by = versions(consumers)
        write_json(folder, RECORD, read_record(folder) | {"check": agreement._asdict(), "read_by": read_by})
    print(f"{out}: equal, read by {', '.join(map(' '.join, read_by.items()))}; {agreement}")
    return agreement


def in_samples(seconds: Sequence[float]) -> list[int]:
    """Lengths of audio in samples, the shortest first.

    Raises:
      ExportError: there is none, or one is no positive number.
    """
    wrong = [each for each in seconds if not (math.isfinite(each) and each > 0)]
    if wrong or not seconds:
        raise ExportError(f"--seconds takes lengths above 0, got {wrong[0] if wrong else 'none'}")
    return sorted({round(each * SAMPLE_RATE) for each in seconds})


def padded(runs: Mapping[int, Run]) -> Run:
    """Programs that take one row of so many samples as one that takes any rows: each goes to the shortest that fits."""

    def run(audio: Int16[np.ndarray, "batch samples"], audio_length: Int32[np.ndarray, " batch"]) -> Outputs:
        samples = min(each for each in runs if each >= audio.shape[1])
        audio = np.pad(audio, ((0, 0), (0, samples - audio.shape[1])))
        rows = [runs[samples](row[None], length[None]) for row, length in zip(audio, audio_length, strict=True)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return run


def spelling(tokenizer: Tokenizer) -> list[str]:
    """What each id adds to a text: a text is these in a row, without the spaces that it may begin with, in NFKC.

    Raises:
      ExportError: the tokenizer spells otherwise, as one does that has pieces for single bytes.
    """
    pieces = [piece.replace("\u2581", " ") for piece in tokenizer.pieces]
    rng = np.random.default_rng(0)
    for ids in rng.integers(1, tokenizer.vocab_size, (200, 12)).tolist():
        text, joined = tokenizer.decode(ids), "".join(pieces[number] for number in ids)
        if plain(joined) != plain(text):
            raise ExportError(
                f"the tokenizer spells ids as {text!r} where its pieces one after the other give {joined!r}, and "
                "exported programs know no other rule: train the recognizer with one of characters, or of pieces "
                "without --byte-fallback"
            )
    return pieces


def plain(text: str) -> str:
    """A text as exports are compared by it: in NFKC, without spaces at its begin."""
    return unicodedata.normalize("NFKC", text).lstrip(" ")


_ROWS = 5
_SHAPES = ((1, 17_567), (_ROWS, 28_000))


def check(program: Program, run: Run, shapes: Sequence[tuple[int, int]] = _SHAPES) -> Agreement:
    """Compares an exported recognizer with the original on made-up speech.

    Args:
      run: the exported one: audio and lengths in, the outputs of `Program.run` out, and `text` if it spells too.
      shapes: rows and samples of each batch that is tried. By default an odd row alone, and rows of odd and even
        lengths together, padded with noise, one of them empty.

    Raises:
      FailedCheck: log-probabilities differ by more than `TOLERANCE`, or anything else differs at all.
    """

    @jax.jit
    def original(params, audio, audio_length):
        logits, length = program.logits(params, {"audio": audio, "audio_length": audio_length})
        return jax.nn.log_softmax(logits), length, best_path(logits, length)

    params = unflatten_dict(program.weights, sep=".")
    rows = frames = tokens = 0
    worst = 0.0
    for audio, length in (_clips(*shape) for shape in shapes):
        log_probs, num_frames, path = jax.device_get(original(params, audio, length))
        given = {name: np.asarray(value) for name, value in run(audio, length).items()}
        if not np.array_equal(given["num_frames"], num_frames):
            raise FailedCheck(f"audio of {length} samples gives {given['num_frames']} frames instead of {num_frames}")
        for row, count in enumerate(num_frames):
            apart = np.abs(given["log_probs"][row, :count] - log_probs[row, :count])
            worst = float(np.maximum(worst, apart.max(initial=0.0)))  # keeps what is not a number
            (ids,) = collapse(path[row : row + 1])
            found = [int(number) for number in given["tokens"][row] if number != BLANK]
            text, spelled = program.tokenizer.decode(ids), program.text(given["tokens"][row])
            if "text" in given:
                spelled = given["text"][row].decode("utf-8")
            if found != ids or plain(spelled) != plain(text):
                raise FailedCheck(f"{length[row]} samples give tokens {found}, {spelled!r} instead of {ids}, {text!r}")
            rows, frames, tokens = rows + 1, frames + int(count), tokens + len(ids)
        if not worst <= TOLERANCE:
            raise FailedCheck(f"log-probabilities differ by {worst:.1e} nats; {TOLERANCE:.0e} are allowed")
    return Agreement(rows, frames, tokens, worst)


def _clips(rows: int, samples: int) -> tuple[Int16[np.ndarray, "batch samples"], Int32[np.ndarray, " batch"]]:
    rng = np.random.default_rng(0)
    lengths = np.minimum([samples, 0, WINDOW, 15_999, 11_111], samples)[:rows].astype(np.int32)
    audio = rng.integers(-3000, 3000, (rows, samples))
    for row, length in enumerate(lengths):
        audio[row, :length] = _babble(int(length), rng)
    return audio.astype(np.int16), lengths


def _babble(length: int, rng: np.random.Generator) -> Float32[np.ndarray, " samples"]:
    """Syllables of a falling voice, and a pause with the hiss of a quiet room.

    Not digital silence, on which a model can magnify the rounding of float32 a hundredfold, right as it may be.
    """
    seconds = np.arange(length) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(180 - 30 * seconds + 25 * np.sin(9 * seconds)) / SAMPLE_RATE
    harmonics = rng.uniform(0, 1, 30) / np.arange(1, 31)
    voice = sum(weight * np.sin(n * phase) for n, weight in enumerate(harmonics, start=1))
    is_pause = np.abs(np.arange(length) - length / 2) < length / 16
    voice = np.where(is_pause, 0, np.sin(4 * np.pi * seconds) ** 2 * voice)
    return (4000 * voice + 20 * rng.normal(size=length)).astype(np.float32)
