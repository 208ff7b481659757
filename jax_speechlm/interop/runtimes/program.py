"""A CTC recognizer as one function of arrays, from samples to tokens, and its export to another runtime.

    run(weights, audio, audio_length) -> {"log_probs": ..., "num_frames": ..., "tokens": ...}

The function includes the front end and greedy decoding, in float32. Weights are arguments, by dotted name. A `Target`
writes it for one runtime; `export` compares the written program with the original before the folder appears.
"""

import dataclasses
import importlib.util
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float32, Int, Int16, Int32

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import BLANK, Tokenizer
from jax_speechlm.decoding.ctc.greedy import best_path, collapse
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import RECORD, ExportError, FailedCheck
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn.attention.relative import MAX_FULL_SCORES
from jax_speechlm.tasks import TASKS, task_of
from jax_speechlm.training.runs import LoadedRun

VERSION = 1
"""Version of the record and of the function that it describes; readers refuse higher ones."""

TOLERANCE = 1e-4
"""Largest allowed difference of log-probabilities from the original's, in nats."""

LENGTHS = (5.0, 15.0, 30.0)  # seconds
Run = Annotated[
    Path, tyro.conf.Positional, tyro.conf.arg(help="a run's directory, or one of its checkpoints/<step> folders.")
]
Out = Annotated[Path, tyro.conf.arg(help="the folder to write; an earlier export there is replaced.")]
Seconds = Annotated[tuple[float, ...], tyro.conf.arg(help="lengths of audio, as short clips waste time in a long one.")]

Weights = Mapping[str, Any]
Outputs = Mapping[str, Any]
Recognize = Callable[[Int16[np.ndarray, "batch samples"], Int32[np.ndarray, " batch"]], Outputs]
"""An exported recognizer: audio and lengths in, the outputs of `Program.run` out, and `text` if it decodes to text."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A recognizer that was trained by CTC, alone or with other objectives.

    Attributes:
      weights: numpy float32 by dotted name: the parameters that recognition needs.
      logits: the objective's `logits(nested parameters, batch) -> (logits, lengths)`.
    """

    name: ClassVar[str] = "recognizer"
    inputs: ClassVar[tuple[str, ...]] = ("audio", "audio_length")
    outputs: ClassVar[tuple[str, ...]] = ("log_probs", "num_frames", "tokens")

    checkpoint: AnyPath
    step: int
    mel: LogMel
    tokenizer: Tokenizer
    weights: dict[str, np.ndarray]
    logits: Callable[..., tuple[Array, Array]]

    @classmethod
    def of(cls, run: LoadedRun) -> "Program":
        """Returns the program of a run's recognizer. Raises `ExportError` for a run without one."""
        experiment, task = run.experiment, task_of(run.experiment.objective)
        if not task.runtimes:
            able = " or ".join(name for name, other in TASKS.items() if other.runtimes)
            raise ExportError(
                f"{run.checkpoint}: was trained by {task.name}; only recognizers that were trained by {able} are "
                "exported to other runtimes: name such a run"
            )
        if isinstance(experiment.model, FastConformerConfig):
            raise ExportError(
                f"{run.checkpoint}: its {experiment.model.kind} is not exported to other runtimes yet; use --to hf"
            )
        if not isinstance(experiment.frontend.mel, LogMel):
            raise ExportError(
                f"{run.checkpoint}: its front end, variant {experiment.frontend.mel.variant}, is not exported to other "
                "runtimes yet; use --to hf"
            )
        # Nothing is differentiated, so nothing needs rematerialisation.
        model = experiment.model.replace(dtype="float32", remat="none")
        logits = experiment.objective.build(model, experiment.frontend, run.tokenizer).logits
        weights = {name: np.asarray(value) for name, value in flatten_dict(run.params, sep=".").items()}
        program = cls(run.checkpoint, run.step, experiment.frontend.mel, run.tokenizer, weights, logits)
        return dataclasses.replace(program, weights=used_weights(program, program.samples[0]))

    @property
    def samples(self) -> tuple[int, int]:
        """Fewest and most samples of a padded row: of one frame, and of the frames that attention takes at once."""
        mel = self.mel
        return mel.window + (mel.stack - 1) * mel.hop, (MAX_FULL_SCORES * mel.stack - 1) * mel.hop

    def arguments(self, samples: int | None = None) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the shapes of audio and lengths: of one row of `samples`, or with symbols for both sizes."""
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
        """Recognizes speech; this is the function that is exported.

        Args:
          audio: at the front end's rate, the rows padded with anything to a length within `samples`.
          audio_length: number of samples per row; may be 0.

        Returns:
          log_probs: natural logarithms, float32 [batch, frames, ids]; id 0 is the blank.
          num_frames: int32 [batch]; later frames of a row have no meaning.
          tokens: int32 [batch, frames]: greedy decoding; a token's id at its first frame, else 0.
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
        """Returns the text of a row of `tokens`."""
        return self.tokenizer.decode(int(token) for token in tokens if token != BLANK)

    def record(self, target: str, **entries: Any) -> dict[str, Any]:
        """Returns the record, `jax_speechlm.json`: the entries of every target, and `entries` of this one."""
        fewest, most = self.samples

        def array(dtype: str, *shape: str | int) -> dict[str, Any]:
            return {"dtype": dtype, "shape": list(shape)}

        return {
            "format": "jax_speechlm recognizer",
            "version": VERSION,
            "target": target,
            "checkpoint": str(self.checkpoint),
            "made_by": {name: version(name) for name in ("jax_speechlm", "jax", "jaxlib")},
            "step": self.step,
            "sample_rate": self.mel.sample_rate,
            "samples": {"fewest": fewest, "most": most},
            "frame_seconds": self.mel.frame_samples / self.mel.sample_rate,
            "inputs": {"audio": array("int16", "batch", "samples"), "audio_length": array("int32", "batch")},
            "outputs": {
                "log_probs": array("float32", "batch", "frames", self.tokenizer.vocab_size),
                "num_frames": array("int32", "batch"),
                "tokens": array("int32", "batch", "frames"),
            },
            "tokenizer": {"kind": self.tokenizer.kind, "pieces": id_texts(self.tokenizer)},
            **entries,
        }


class Agreement(NamedTuple):
    """Result of comparing an exported recognizer with the original: numbers of what was compared, and nats."""

    rows: int
    frames: int
    tokens: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.rows} utterances, {self.frames} frames: log-probabilities differ by at most {self.difference:.1e} "
            f"nats, the {self.tokens} greedy tokens and their texts are the same"
        )


class Target(NamedTuple):
    """A runtime that recognizers are exported to; `consumers` are the modules that `read` uses.

    `write` takes the program, an empty folder and, if there is one program per length of audio, the lengths in samples;
    it returns the target's entries of the record. `read` opens the recognizer of such a folder, record included.
    """

    name: str
    write: Callable[..., dict[str, Any]]
    read: Callable[[Path], Recognize]
    consumers: Sequence[str]


def export(run: Path, out: Path, target: Target, seconds: Sequence[float] | None = None) -> Agreement:
    """Exports a run's recognizer. `out` appears after the exported one gave the results of the original.

    Args:
      seconds: lengths of audio, for a target with one program per length.

    Raises:
      FailedCheck: the written program gives other results.
    """
    if seconds is not None:
        check_positive(seconds)
    folders.require_free(out)
    program = Program.of(LoadedRun.read(run))
    rate, (fewest, most) = program.mel.sample_rate, program.samples
    lengths = sorted({round(length * rate) for length in seconds or ()})
    if lengths and not fewest <= lengths[0] <= lengths[-1] <= most:
        limits = f"{fewest / rate:.3f} to {most / rate:.0f}"
        raise ExportError(f"{program.checkpoint}: --seconds must lie within {limits} for this model")
    count = sum(value.size for value in program.weights.values())
    print(f"{program.checkpoint}: exporting {count:,} parameters", file=sys.stderr, flush=True)
    with folders.written(out, {}) as folder:
        entries = target.write(program, folder, lengths) if lengths else target.write(program, folder)
        record = program.record(target.name, **entries)
        folders.write_json(folder, RECORD, record)
        exported = target.read(folder)
        print("comparing with the original", file=sys.stderr, flush=True)
        agreement = check(program, exported, [(_ROWS, samples) for samples in lengths] or _SHAPES)
        read_by = folders.versions(target.consumers)
        folders.write_json(folder, RECORD, record | {"check": agreement._asdict(), "read_by": read_by})
    print(f"{out}: equal, read by {', '.join(map(' '.join, read_by.items()))}; {agreement}")
    return agreement


def check_positive(seconds: Sequence[float]) -> None:
    """Raises `ExportError` unless there are lengths of audio, all of them above 0."""
    wrong = [length for length in seconds if not (math.isfinite(length) and length > 0)]
    if wrong or not seconds:
        raise ExportError(f"--seconds takes lengths above 0, got {wrong[0] if wrong else 'none'}")


def used_weights(program: Any, samples: int) -> dict[str, np.ndarray]:
    """Returns the weights that a program of `samples` reads."""
    weights = program.weights
    shapes = jax.eval_shape(lambda: weights)
    kept = set(jax.export.export(jax.jit(program.run))(shapes, *program.arguments(samples)).module_kept_var_idx)
    return {name: weights[name] for index, name in enumerate(sorted(weights)) if index in kept}


def require_installed(extra: str, **packages: str) -> None:
    """Raises `ExportError` unless modules are importable: package by module, and the extra that installs them."""
    if missing := [package for module, package in packages.items() if importlib.util.find_spec(module) is None]:
        raise ExportError(f"not installed: {', '.join(missing)}. Try pip install -e '.[{extra}]'")


def num_threads() -> int:
    """Returns the number of cores that the process may use."""
    return len(os.sched_getaffinity(0))


def padded(recognizers: Mapping[int, Recognize]) -> Recognize:
    """Combines recognizers of one row of fixed length, by samples; each row is padded to the shortest that fits."""

    def recognize(audio: Int16[np.ndarray, "batch samples"], audio_length: Int32[np.ndarray, " batch"]) -> Outputs:
        samples = min(length for length in recognizers if length >= audio.shape[1])
        audio = np.pad(audio, ((0, 0), (0, samples - audio.shape[1])))
        rows = [recognizers[samples](*row) for row in zip(audio[:, None], audio_length[:, None], strict=True)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return recognize


def id_texts(tokenizer: Tokenizer) -> list[str]:
    """Returns the texts of all ids; these, joined, without leading spaces and in NFKC, are the text of several ids.

    Raises:
      ExportError: the tokenizer decodes in another way, such as one with pieces for single bytes.
    """
    pieces = [piece.replace("\u2581", " ") for piece in tokenizer.pieces]
    rng = np.random.default_rng(0)
    for ids in rng.integers(1, tokenizer.vocab_size, (200, 12)).tolist():
        text, joined = tokenizer.decode(ids), "".join(pieces[token] for token in ids)
        if plain(joined) != plain(text):
            raise ExportError(
                f"the tokenizer decodes ids to {text!r} where its pieces one after the other give {joined!r}, and "
                "exported programs know no other rule: train the recognizer with a tokenizer of characters, or of "
                "pieces without --byte-fallback"
            )
    return pieces


def plain(text: str) -> str:
    """Returns a text in the form in which exports are compared: NFKC, without leading spaces."""
    return unicodedata.normalize("NFKC", text).lstrip(" ")


_ROWS = 5
_SHAPES = ((1, 17_567), (_ROWS, 28_000))


def check(program: Program, recognize: Recognize, shapes: Sequence[tuple[int, int]] = _SHAPES) -> Agreement:
    """Compares an exported recognizer with the original on synthetic speech.

    By default the batches are one row of odd length, and rows of odd and even lengths together, padded with noise, one
    of them empty.

    Args:
      shapes: rows and samples of the batches.

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
        outputs = {name: np.asarray(value) for name, value in recognize(audio, length).items()}
        if not np.array_equal(outputs["num_frames"], num_frames):
            raise FailedCheck(f"audio of {length} samples gives {outputs['num_frames']} frames instead of {num_frames}")
        for row, count in enumerate(num_frames):
            difference = np.abs(outputs["log_probs"][row, :count] - log_probs[row, :count])
            worst = float(np.maximum(worst, difference.max(initial=0.0)))  # keeps NaN
            (ids,) = collapse(path[row : row + 1])
            tokens_row = [int(token) for token in outputs["tokens"][row] if token != BLANK]
            text, decoded = program.tokenizer.decode(ids), program.text(outputs["tokens"][row])
            if "text" in outputs:
                decoded = outputs["text"][row].decode("utf-8")
            if tokens_row != ids or plain(decoded) != plain(text):
                raise FailedCheck(
                    f"{length[row]} samples give tokens {tokens_row}, {decoded!r} instead of {ids}, {text!r}"
                )
            rows, frames, tokens = rows + 1, frames + int(count), tokens + len(ids)
        if not worst <= TOLERANCE:
            raise FailedCheck(f"log-probabilities differ by {worst:.1e} nats; {TOLERANCE:.0e} are allowed")
    return Agreement(rows, frames, tokens, worst)


def _clips(rows: int, samples: int) -> tuple[Int16[np.ndarray, "batch samples"], Int32[np.ndarray, " batch"]]:
    rng = np.random.default_rng(0)
    lengths = np.minimum([samples, 0, 400, 15_999, 11_111], samples)[:rows].astype(np.int32)
    audio = rng.integers(-3000, 3000, (rows, samples))
    for row, length in enumerate(lengths):
        audio[row, :length] = babble(int(length), rng)
    return audio.astype(np.int16), lengths


def babble(length: int, rng: np.random.Generator) -> Float32[np.ndarray, " samples"]:
    """Synthesizes syllables of a falling voice, and a pause with the noise of a quiet room.

    Not digital silence, on which a correct model can magnify the rounding of float32 a hundredfold.
    """
    seconds = np.arange(length) / DEFAULT_SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(180 - 30 * seconds + 25 * np.sin(9 * seconds)) / DEFAULT_SAMPLE_RATE
    harmonics = rng.uniform(0, 1, 30) / np.arange(1, 31)
    voice = sum(weight * np.sin(n * phase) for n, weight in enumerate(harmonics, start=1))
    is_pause = np.abs(np.arange(length) - length / 2) < length / 16
    voice = np.where(is_pause, 0, np.sin(4 * np.pi * seconds) ** 2 * voice)
    return (4000 * voice + 20 * rng.normal(size=length)).astype(np.float32)
