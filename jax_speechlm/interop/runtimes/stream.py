"""A recognizer of streams as one function of arrays, and its export to another runtime.

    run(weights, samples, num_samples, *state) -> {"tokens": ..., "num_frames": ..., "next_features_mean": ..., ...}

The function is a step over a chunk: front end, encoder and greedy search, in float32. Its state goes in and out as
arrays. All shapes are fixed.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Int16

from data_pipelines.core.tokenizer import BLANK
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.segments import Segments
from jax_speechlm.core.tree import name_of
from jax_speechlm.decoding.ctc.greedy import StreamingBestPath
from jax_speechlm.decoding.stream import Emissions
from jax_speechlm.frontend.logmel import let_decay, samples_before
from jax_speechlm.frontend.streaming import LogMelState, SampleChunks
from jax_speechlm.inference.asr.stream import StreamingProgram, StreamState
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import RECORD, ExportError, FailedCheck
from jax_speechlm.interop.runtimes.program import (
    TOLERANCE,
    Outputs,
    Target,
    Weights,
    babble,
    id_texts,
    used_weights,
)
from jax_speechlm.tasks import TASKS, resolve, task_of
from jax_speechlm.training.runs import LoadedRun

VERSION = 1
"""Version of the record and of the function that it describes; readers refuse higher ones."""

STATE = "state.npz"
"""File of the state before the first chunk, by the names of the program's inputs."""

_SECONDS = 2.5  # of the comparison
_NEXT = "next_"

IsStream = Annotated[
    bool, tyro.conf.arg(help="export a step over a chunk, its state in and out, of a run that was trained to stream.")
]
ChunkMs = Annotated[
    int | None, tyro.conf.arg(help="with --stream: a chunk that the run was trained on; the longest if left out.")
]
Step = Callable[[Mapping[str, np.ndarray]], Outputs]
"""An exported step: its inputs and outputs by name."""


@dataclasses.dataclass(frozen=True)
class StreamProgram:
    """A step of a recognizer that was trained to stream.

    Attributes:
      recognizer: the original, in float32.
      weights: numpy float32 by dotted name: the parameters that the step needs.
      start: the state before the first chunk, of numpy arrays.
    """

    name: ClassVar[str] = "stream"

    recognizer: StreamingProgram
    weights: dict[str, np.ndarray]
    start: StreamState

    @classmethod
    def of(cls, run: LoadedRun, chunk_ms: int | None) -> "StreamProgram":
        """Returns the step of a run. Raises `ExportError` for a run without one."""
        task = task_of(run.experiment.objective)
        if "stream" not in task.abilities:
            able = " or ".join(name for name, other in TASKS.items() if "stream" in other.abilities)
            raise ExportError(f"{run.checkpoint}: was trained by {task.name}; only {able} can stream: name such a run")
        experiment = run.experiment.replace(model=run.experiment.model.replace(dtype="float32", remat="none"))
        run = dataclasses.replace(run, experiment=experiment)
        try:
            recognizer = StreamingProgram(run, resolve(task.predictor).stream_search(run), chunk_ms=chunk_ms)
        except (CheckpointError, ValueError) as error:
            raise ExportError(str(error)) from error
        weights = {name: np.asarray(value) for name, value in flatten_dict(run.params, sep=".").items()}
        state = jax.device_get(recognizer.init_state(run.params, 1))
        before = samples_before(recognizer.features.config)
        state = state._replace(features=state.features._replace(tail=state.features.tail[:, :before]))
        program = cls(recognizer, weights, state)
        return dataclasses.replace(program, weights=used_weights(program, program.window_samples))

    @property
    def window_samples(self) -> int:
        """Samples that go in: a chunk, and those after it that its last window reads."""
        features = self.recognizer.features
        return features.chunk_samples + features.lead_samples

    @property
    def zeros_before(self) -> int:
        """Zeros before the first sample of a stream."""
        return self.recognizer.run.experiment.model.lead_vectors * self.recognizer.features.config.frame_samples

    @functools.cached_property
    def state(self) -> dict[str, np.ndarray]:
        """The arrays of `start` that are not empty, by name."""
        leaves = zip(_names(self.start), jax.tree.leaves(self.start), strict=True)
        return {name: leaf for name, leaf in leaves if leaf.size}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return "samples", "num_samples", *self.state

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return "log_probs", "num_frames", "tokens", "frames", *(_NEXT + name for name in self.state)

    def arguments(self, samples: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shapes of the inputs; `samples` are those of the window."""
        shapes = [((1, samples), np.int16), ((1,), np.int32)]
        shapes += [(array.shape, array.dtype) for array in self.state.values()]
        return tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)

    def run(
        self,
        weights: Weights,
        samples_BxW: Int16[Array, "batch window"],
        num_samples_B: Int[Array, " batch"],
        *state: Array,
    ) -> dict[str, Array]:
        """Processes the next chunk; this is the function that is exported.

        Args:
          samples_BxW: a chunk and the samples after it, up to `window_samples`; anything where the stream has ended.
          num_samples_B: samples that are there; fewer than the window at the end of the stream only, and may be 0.
          state: arrays by the names of `state`.

        Returns:
          log_probs: of CTC of all ids, float32 [batch, frames, ids]; of a transducer of the `tokens`.
          num_frames: int32 [batch], of the chunk.
          tokens: int32 [batch, places], 0 where there is none.
          frames: int32 [batch, places]: the frame of the chunk at which each token begins.
          next_*: the state.
        """
        recognizer, params = self.recognizer, unflatten_dict(self._unused | dict(weights), sep=".")
        before = self._unflatten(state)
        features, vectors_BxVxF, num_vectors_B = self._features(before.features, samples_BxW, num_samples_B)
        num_lead_B = jnp.where(before.encoder.num_frames == 0, recognizer.run.experiment.model.lead_vectors, 0)
        num_vectors_B = jnp.where(num_vectors_B > num_lead_B, num_vectors_B, 0)
        encoder, hidden_BxCxD, num_frames_B = recognizer.encoder.step(
            params["encoder"], before.encoder, vectors_BxVxF, num_vectors_B
        )
        search, found = recognizer.search.step(params, before.search, hidden_BxCxD, num_frames_B)
        log_probs = found.log_prob
        if isinstance(recognizer.search, StreamingBestPath):
            log_probs = recognizer.search.log_probs(params, hidden_BxCxD)
        after = StreamState(features, encoder, search)
        arrays = dict(zip(_names(after), jax.tree.leaves(after), strict=True))
        return {
            "log_probs": log_probs,
            "num_frames": num_frames_B.astype(jnp.int32),
            "tokens": jnp.where(found.continues, BLANK, found.token).astype(jnp.int32),
            "frames": found.frame.astype(jnp.int32),
        } | {_NEXT + name: arrays[name] for name in self.state}

    def _features(
        self, state: LogMelState, samples_BxW: Array, num_samples_B: Array
    ) -> tuple[LogMelState, Float[Array, "batch vectors features"], Int[Array, " batch"]]:
        """Returns the front end's state, the feature vectors of the chunk and the number of those that are valid."""
        stream, mel, before = self.recognizer.features, self.recognizer.features.config, state.tail.shape[1]
        row_BxS = jnp.concatenate([state.tail, samples_BxW.astype(jnp.float32)], axis=1)
        there = Segments.of(before + num_samples_B)
        row_BxS = jnp.where(there.mask(row_BxS.shape[1]), row_BxS, 0)
        if mel.variant == "nemo":
            row_BxS = let_decay(row_BxS, there, mel)
        tail, chunk = jnp.split(row_BxS, [before + stream.lead_samples], axis=1)
        after, vectors_BxVxF = stream.step(LogMelState(tail, state.mean), chunk)
        # A window of librosa's may lie on the end of a stream, even if no sample is left.
        num_vectors_B = mel.num_frames(jnp.maximum(num_samples_B, 1))
        num_vectors_B = jnp.clip(num_vectors_B, 0, stream.num_vectors)
        return after._replace(tail=after.tail[:, :before]), vectors_BxVxF, num_vectors_B

    @functools.cached_property
    def _unused(self) -> dict[str, np.ndarray]:
        """Zeros for the parameters that the model declares and the step does not read."""
        params = flatten_dict(self.recognizer.run.params, sep=".")
        return {name: np.zeros(x.shape, np.float32) for name, x in params.items() if name not in self.weights}

    def _unflatten(self, arrays: tuple[Array, ...]) -> StreamState:
        given = dict(zip(self.state, arrays, strict=True))
        leaves = zip(_names(self.start), jax.tree.leaves(self.start), strict=True)
        return jax.tree.unflatten(jax.tree.structure(self.start), [given.get(name, leaf) for name, leaf in leaves])

    def record(self, target: str, **entries: Any) -> dict[str, Any]:
        """Returns the record, `jax_speechlm.json`: the entries of every target, and `entries` of this one."""
        run, features = self.recognizer.run, self.recognizer.features
        return {
            "format": "jax_speechlm stream",
            "version": VERSION,
            "target": target,
            "checkpoint": str(run.checkpoint),
            "made_by": {name: version(name) for name in ("jax_speechlm", "jax", "jaxlib")},
            "step": run.step,
            "sample_rate": run.experiment.sample_rate,
            "chunk_samples": features.chunk_samples,
            "window_samples": self.window_samples,
            "zeros_before": self.zeros_before,
            "frame_seconds": self.recognizer.frame_seconds,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "state": STATE,
            "tokenizer": {"kind": run.tokenizer.kind, "pieces": id_texts(run.tokenizer)},
            **entries,
        }


def _names(state: StreamState) -> list[str]:
    """Returns a name for each array of a state, without the letters of its shape: "encoder_layers_attention_key"."""
    names = [name_of(path) for path, _ in jax.tree.leaves_with_path(state)]
    return [re.sub(r"_[A-Z]x\w+$", "", name).replace("/", "_") for name in names]


class Agreement(NamedTuple):
    """Result of comparing an exported step with the original: numbers of what was compared, and nats."""

    chunks: int
    frames: int
    tokens: int
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.chunks} chunks, {self.frames} frames: log-probabilities differ by at most {self.difference:.1e} "
            f"nats, the {self.tokens} tokens are the same"
        )


def check_options(stream: bool, chunk_ms: int | None) -> None:
    """Raises `ExportError` for the settings of a stream without one."""
    if chunk_ms is not None and not stream:
        raise ExportError("--chunk-ms is for a step over a stream: add --stream")


def export(run: Path, out: Path, target: Target, chunk_ms: int | None) -> Agreement:
    """Exports a step of a run. `out` appears after the exported one gave the results of the original.

    Raises:
      FailedCheck: the written program gives other results.
    """
    folders.require_free(out)
    program = StreamProgram.of(LoadedRun.read(run), chunk_ms)
    count = sum(value.size for value in program.weights.values())
    print(f"{program.recognizer.run.checkpoint}: exporting {count:,} parameters", file=sys.stderr, flush=True)
    with folders.written(out, {}) as folder:
        np.savez(folder / STATE, **program.state)
        entries = target.write(program, folder, [program.window_samples])
        file = entries.get("program") or next(iter(entries["programs"]))
        record = program.record(target.name, **entries | {"program": file})
        folders.write_json(folder, RECORD, record)
        print("comparing with the original", file=sys.stderr, flush=True)
        agreement = check(program, target.read(folder))
        read_by = folders.versions(target.consumers)
        folders.write_json(folder, RECORD, record | {"check": agreement._asdict(), "read_by": read_by})
    print(f"{out}: equal, read by {', '.join(map(' '.join, read_by.items()))}; {agreement}")
    return agreement


def check(program: StreamProgram, step: Step) -> Agreement:
    """Compares an exported step with the recognizer's own, chunk by chunk, on synthetic speech.

    Raises:
      FailedCheck: log-probabilities differ by more than `TOLERANCE`, or anything else differs at all.
    """
    recognizer = program.recognizer
    rate = recognizer.run.experiment.sample_rate
    audio = babble(round(_SECONDS * rate), np.random.default_rng(0)).astype(np.int16)
    originals, compute, weights = _originals(recognizer, audio), jax.jit(program.run), jax.device_put(program.weights)
    state = expected_state = program.state
    chunks = frames = tokens = 0
    worst = 0.0
    for window in windows(program, audio):
        outputs = {name: np.asarray(value) for name, value in step(window | state).items()}
        expected = jax.device_get(compute(weights, *(window | expected_state).values()))
        state, expected_state = ({name: each[_NEXT + name] for name in state} for each in (outputs, expected))
        num_frames = int(expected["num_frames"][0])
        original, original_frames = next(originals) if num_frames else (None, 0)
        if not int(outputs["num_frames"][0]) == num_frames == original_frames:
            raise FailedCheck(f"chunk {chunks} has {outputs['num_frames']} frames instead of {original_frames}")
        if not num_frames:
            continue
        found = np.where(original.continues, BLANK, original.token)[0]
        places = np.flatnonzero(found)
        if not np.array_equal(outputs["tokens"][0], found) or not np.array_equal(
            outputs["frames"][0][places], original.frame[0][places]
        ):
            raise FailedCheck(f"chunk {chunks} gives the tokens {outputs['tokens'][0]} instead of {found}")
        log_probs, own = outputs["log_probs"][0], expected["log_probs"][0]
        if log_probs.ndim == 2:  # of CTC, frame by frame
            places, best = np.arange(num_frames), log_probs.max(-1)
        else:
            best = log_probs
        for difference in (log_probs[places] - own[places], best[places] - original.log_prob[0][places]):
            worst = float(np.maximum(worst, np.abs(difference).max(initial=0.0)))  # keeps NaN
        chunks, frames, tokens = chunks + 1, frames + num_frames, tokens + int(np.count_nonzero(found))
    if not worst <= TOLERANCE:
        raise FailedCheck(f"log-probabilities differ by {worst:.1e} nats; {TOLERANCE:.0e} are allowed")
    return Agreement(chunks, frames, tokens, worst)


def windows(program: StreamProgram, audio: Int16[np.ndarray, " samples"]) -> Iterator[dict[str, np.ndarray]]:
    """Yields the inputs of a recording's chunks, but for the state."""
    size, audio = program.window_samples, np.pad(audio, (program.zeros_before, 0))
    for start in range(0, len(audio) + 1, program.recognizer.features.chunk_samples):
        samples = audio[start : start + size]
        padded = np.pad(samples, (0, size - len(samples)))[None]
        yield {"samples": padded, "num_samples": np.array([len(samples)], np.int32)}


def _originals(recognizer: StreamingProgram, audio: Int16[np.ndarray, " samples"]) -> Iterator[tuple[Emissions, int]]:
    """Yields what the recognizer's own step finds in each chunk of a recording, and the number of frames."""
    params, state = recognizer.run.params, recognizer.init_state(recognizer.run.params, 1)
    chunks = SampleChunks(recognizer.features, recognizer.run.experiment.model.lead_vectors)
    chunks.add(audio)
    lead = np.zeros((1, recognizer.features.lead_samples), np.float32)
    for chunk in [*iter(chunks.take, None), *chunks.finish()]:
        starts = chunk.lead is not None
        inputs = chunk.samples[None], np.array([chunk.num_vectors]), chunk.lead[None] if starts else lead
        state, *outputs = recognizer.step(params, state, *map(jnp.asarray, inputs), jnp.array([starts]))
        found, num_frames = jax.device_get(outputs)
        yield found, int(num_frames[0])
