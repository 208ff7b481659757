"""A voice as one function of arrays, from the token ids of a sentence to samples, and its export to another runtime.

    run(weights, tokens, token_length, speaker, speed) -> {"samples": ..., "num_samples": ..., "durations": ...}

The function is an acoustic model and its vocoder, in float32. Its sizes are fixed: there is a program for each number
of tokens, with a number of frames for each token on average.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Int32

from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.inference.synthesize import LONGEST_PART, Synthesizer
from jax_speechlm.inference.vocode import TrainedVocoder
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import RECORD, ExportError, FailedCheck
from jax_speechlm.interop.runtimes.program import Outputs, Target, Weights
from jax_speechlm.models.tts.fastspeech2 import (
    FastSpeech2,
    FastSpeech2Config,
    one_hot_tokens,
    repeat_by_frame,
    token_of_frame,
)
from jax_speechlm.models.tts.text import boundary_id, num_ids
from jax_speechlm.models.vocoders.vocoders import make_vocoder
from jax_speechlm.models.vocoders.wavenet import WaveNetConfig
from jax_speechlm.nn import functional
from jax_speechlm.training.runs import task_of_run

VERSION = 1
"""Version of the record and of the function that it describes; readers refuse higher ones."""

TOLERANCE = 1e-4
"""Largest allowed difference of samples in [-1, 1] from the original's."""

LENGTHS = (64, 128, 256)
SECONDS_PER_TOKEN = 0.15
"""Room for speech in a program; English in characters takes half of it."""

_SPEED = 1.25  # of the comparison

VocoderRun = Annotated[
    Path | None, tyro.conf.arg(help="for a voice: the run of its vocoder, or one of its checkpoints/<step> folders.")
]
Tokens = Annotated[
    tuple[int, ...], tyro.conf.arg(help="for a voice: lengths of sentences in tokens, with a boundary at both ends.")
]
Speak = Callable[[Int32[np.ndarray, " tokens"], int, float], Outputs]
"""An exported voice: ids with boundaries, speaker and speed in, the outputs of `VoiceProgram.run` out."""


@dataclasses.dataclass(frozen=True)
class VoiceProgram:
    """A voice with its vocoder.

    Attributes:
      weights: numpy float32 by dotted name, of the groups `acoustic` and `generator`.
      acoustic, generator: the modules without their arrays.
    """

    name: ClassVar[str] = "voice"
    inputs: ClassVar[tuple[str, ...]] = ("tokens", "token_length", "speaker", "speed")
    outputs: ClassVar[tuple[str, ...]] = ("samples", "num_samples", "durations")

    checkpoint: AnyPath
    vocoder: AnyPath
    step: int
    mel: SynthesisMel
    tokenizer: Tokenizer
    speakers: tuple[str, ...]
    weights: dict[str, np.ndarray]
    acoustic: nnx.GraphDef
    generator: nnx.GraphDef

    @classmethod
    def of(cls, synthesizer: Synthesizer) -> "VoiceProgram":
        """Returns the program of a voice and its vocoder. Raises `ExportError` for a voice without one."""
        run, vocoder, model = synthesizer.run, synthesizer.vocoder, synthesizer.run.experiment.model
        if not isinstance(model, FastSpeech2Config):
            raise ExportError(
                f"{run.checkpoint} is a {model.kind}, and only a fastspeech2 is exported as a program from token ids "
                "to samples; `synthesize` and `eval` open this run"
            )
        if model.text_lm is not None:
            raise ExportError(
                f"{run.checkpoint}: the program of a voice reads tokens alone, and this one a language model too: "
                "train one with model.text_lm=None to export it"
            )
        if not isinstance(vocoder, TrainedVocoder) or isinstance(vocoder.run.experiment.model, WaveNetConfig):
            raise ExportError(
                f"{run.checkpoint}: a voice is exported with a vocoder that computes all samples at once: name the run "
                "of a vocos or a hifigan with --vocoder"
            )
        model, ids = model.replace(dtype="float32", remat="none"), num_ids(run.tokenizer)
        num_speakers = run.experiment.objective.num_speakers
        other = vocoder.run.experiment.model.replace(dtype="float32")
        params = {"acoustic": run.params["acoustic"], "generator": vocoder.run.params["generator"]}
        return cls(
            run.checkpoint,
            vocoder.run.checkpoint,
            run.step,
            run.experiment.frontend.mel,
            run.tokenizer,
            synthesizer.speakers,
            {name: np.asarray(value) for name, value in flatten_dict(params, sep=".").items()},
            functional.declare(lambda rngs: FastSpeech2(model, ids, num_speakers, rngs=rngs)).graphdef,
            functional.declare(lambda rngs: make_vocoder(other, rngs=rngs)).graphdef,
        )

    def num_frames(self, tokens: int) -> int:
        """Returns the frames of a program of so many tokens."""
        return round(tokens * SECONDS_PER_TOKEN * self.mel.sample_rate / self.mel.hop)

    def arguments(self, tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shapes of the inputs, in order, for a row of so many tokens."""
        one = jax.ShapeDtypeStruct((1,), jnp.int32)
        return jax.ShapeDtypeStruct((1, tokens), jnp.int32), one, one, jax.ShapeDtypeStruct((1,), jnp.float32)

    def run(
        self,
        weights: Weights,
        tokens: Int[Array, "1 tokens"],
        token_length: Int[Array, "1"],
        speaker: Int[Array, "1"],
        speed: Float[Array, "1"],
    ) -> dict[str, Array]:
        """Speaks a sentence; this is the function that is exported.

        Args:
          tokens: ids of the sentence with a boundary at both ends, then padding of any ids.
          speaker: index among `speakers`; has no effect where there are none.
          speed: above 1 is faster.

        Returns:
          samples: float32 [1, samples], in [-1, 1].
          num_samples: int32 [1]; more than there are samples if the sentence is cut.
          durations: int32 [1, tokens], in frames of `mel.hop` samples.
        """
        params, size = unflatten_dict(weights, sep="."), tokens.shape[1]
        acoustic = functional.bind(self.acoustic, params["acoustic"])
        x, frames = acoustic.with_durations(tokens, Segments.of(token_length), speaker[:, None], speed[0])
        num_frames = self.num_frames(size)
        matrix = one_hot_tokens(token_of_frame(frames, num_frames), size)
        total = frames.sum(1)
        length = jnp.minimum(total, num_frames)
        _, mel = acoustic.decode(repeat_by_frame(x, matrix), Segments.of(length))
        samples = functional.bind(self.generator, params["generator"])(mel, length)
        return {
            "samples": samples,
            "num_samples": (total * self.mel.hop).astype(jnp.int32),
            "durations": frames.astype(jnp.int32),
        }

    def record(self, target: str, **entries: Any) -> dict[str, Any]:
        """Returns the record, `jax_speechlm.json`: the entries of every target, and `entries` of this one."""
        return {
            "format": "jax_speechlm voice",
            "version": VERSION,
            "target": target,
            "checkpoint": str(self.checkpoint),
            "vocoder_checkpoint": str(self.vocoder),
            "made_by": {name: version(name) for name in ("jax_speechlm", "jax", "jaxlib")},
            "step": self.step,
            "sample_rate": self.mel.sample_rate,
            "hop": self.mel.hop,
            "speakers": list(self.speakers),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "pieces": list(self.tokenizer.pieces),
                "boundary": boundary_id(self.tokenizer),
            },
            **entries,
        }


class Agreement(NamedTuple):
    """Result of comparing an exported voice with the original: numbers of what was compared, and of samples in 1."""

    sentences: int
    frames: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.sentences} sentences, {self.frames} frames: durations are the same, samples differ by at most "
            f"{self.difference:.1e}"
        )


def is_voice(run: Path) -> bool:
    """Whether a run was trained to synthesise speech."""
    return "synthesize" in task_of_run(run).abilities


def require_no(vocoder: Path | None, run: Path) -> None:
    """Raises `ExportError` for a vocoder of a run that is no voice."""
    if vocoder is not None:
        raise ExportError(f"{run} is no voice: leave --vocoder out")


def export(run: Path, vocoder: Path | None, out: Path, target: Target, lengths: Sequence[int]) -> Agreement:
    """Exports a voice. `out` appears after the exported one gave the results of the original.

    Args:
      lengths: tokens of each program, boundaries included.

    Raises:
      FailedCheck: a written program gives other results.
    """
    longest = LONGEST_PART + 2
    if not lengths or not all(3 <= length <= longest for length in lengths):
        raise ExportError(f"--tokens takes lengths from 3 to {longest}, got {list(lengths)}")
    folders.require_free(out)
    synthesizer = Synthesizer.load(run, vocoder)
    program, lengths = VoiceProgram.of(synthesizer), sorted(set(lengths))
    count = sum(value.size for value in program.weights.values())
    print(f"{program.checkpoint}: exporting {count:,} parameters", file=sys.stderr, flush=True)
    with folders.written(out, {}) as folder:
        record = program.record(target.name, **target.write(program, folder, lengths))
        folders.write_json(folder, RECORD, record)
        print("comparing with the original", file=sys.stderr, flush=True)
        agreement = check(program, synthesizer, target.read(folder), lengths)
        read_by = folders.versions(target.consumers)
        folders.write_json(folder, RECORD, record | {"check": agreement._asdict(), "read_by": read_by})
    print(f"{out}: equal, read by {', '.join(map(' '.join, read_by.items()))}; {agreement}")
    return agreement


def check(program: VoiceProgram, synthesizer: Synthesizer, speak: Speak, lengths: Sequence[int]) -> Agreement:
    """Compares an exported voice with `synthesize`, on a made-up sentence for each length, the last speaker's.

    Raises:
      FailedCheck: durations differ, or samples by more than `TOLERANCE`.
    """
    rng, boundary = np.random.default_rng(0), boundary_id(program.tokenizer)
    worst, total, speaker = 0.0, 0, max(len(program.speakers) - 1, 0)
    for length in lengths:
        ids = rng.integers(1, boundary, length - 2).tolist()
        mel, durations = synthesizer.spectrogram(ids, speaker, _SPEED)
        while len(mel) > program.num_frames(length) and len(ids) > 1:  # a slow voice, or an untrained one
            ids = ids[: len(ids) // 2]
            mel, durations = synthesizer.spectrogram(ids, speaker, _SPEED)
        (samples,) = synthesizer.vocoder.vocode([mel])
        outputs = speak(np.array([boundary, *ids, boundary], np.int32), speaker, _SPEED)
        if outputs["durations"].tolist() != durations.tolist():
            raise FailedCheck(f"{len(durations)} tokens have the durations {outputs['durations']}, not {durations}")
        if len(outputs["samples"]) != len(samples):
            raise FailedCheck(f"{len(durations)} tokens have {len(outputs['samples'])} samples, not {len(samples)}")
        difference = np.abs(outputs["samples"] - samples)
        worst = float(np.maximum(worst, difference.max(initial=0.0)))  # keeps NaN
        total += len(mel)
    if not worst <= TOLERANCE:
        raise FailedCheck(f"samples differ by {worst:.1e}; {TOLERANCE:.0e} are allowed")
    return Agreement(len(lengths), total, worst)


def padded(programs: Mapping[int, Callable[..., Outputs]]) -> Speak:
    """Combines programs of fixed numbers of tokens: the shortest that has room for a sentence and its samples.

    The outputs have the sizes of the sentence. Samples end early where no program has room for them.
    """

    def speak(tokens: Int32[np.ndarray, " tokens"], speaker: int, speed: float) -> dict[str, np.ndarray]:
        count = len(tokens)
        inputs = np.array([count], np.int32), np.array([speaker], np.int32), np.array([speed], np.float32)
        for size in sorted(length for length in programs if length >= count):
            row = np.pad(tokens, (0, size - count)).astype(np.int32)[None]
            outputs = {name: np.asarray(value)[0] for name, value in programs[size](row, *inputs).items()}
            if outputs["num_samples"] <= len(outputs["samples"]):
                break
        outputs["samples"] = outputs["samples"][: outputs["num_samples"]]
        return outputs | {"durations": outputs["durations"][:count]}

    return speak
