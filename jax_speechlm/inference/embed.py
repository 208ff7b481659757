"""Hidden states of recordings by a run's speech encoder."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from tyro.conf import Positional

from data_pipelines.audio.decode import AudioError
from jax_speechlm.core.batch import Batch, frame_mask, seed_key
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.inference.adapters import adapted
from jax_speechlm.inference.predictor import rows_by_id, rows_of_recordings
from jax_speechlm.inference.segmentation import Recording, name_of
from jax_speechlm.inference.speaker import SpeakerVectors
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.encoders import EncoderConfig, make_encoder
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import merge
from jax_speechlm.training.runs import LoadedRun, task_of_run


@dataclasses.dataclass(frozen=True)
class SpeechEncoder:
    """A frozen speech encoder and its front end; `checkpoint` is None for random parameters.

    Layer 0 is the input of the first layer, layer `num_layers` the encoder's output.
    """

    abilities: ClassVar[tuple[str, ...]] = ("embed",)

    model: EncoderConfig
    frontend: FrontEnd = dataclasses.field(repr=False)
    params: functional.Params = dataclasses.field(repr=False)
    checkpoint: Path | None = None

    @classmethod
    def load(cls, path: str | Path, adapter: str | Path | None = None) -> "SpeechEncoder":
        """Reads a run's newest checkpoint, and an adapter of it (`inference.adapters`).

        Raises:
          CheckpointError: its model has no speech encoder.
          ExportError: the adapter cannot be read, or is of another model.
        """
        run = LoadedRun.read(path)
        experiment, model = run.experiment, run.experiment.model
        if isinstance(model, EncoderDecoderConfig):
            params, _ = merge(run.params, model.lora)
            run, model = dataclasses.replace(run, params=params), model.encoder
        params = adapted(run, adapter).params
        if not isinstance(model, EncoderConfig):
            raise CheckpointError(
                f"{run.checkpoint}: was trained by {experiment.objective.kind}, whose model has no speech encoder: "
                "name a run that was pretrained or finetuned on speech"
            )
        return cls(model, experiment.frontend, params["encoder"], run.checkpoint)

    @property
    def frame_samples(self) -> int:
        """Distance of frames in samples."""
        return self.frontend.mel.frame_samples * self.model.subsampling

    def random(self, seed: int = 0) -> "SpeechEncoder":
        """Returns the encoder with freshly initialised parameters, as a baseline."""
        return dataclasses.replace(self, params=functional.init(self._make, seed_key(seed)), checkpoint=None)

    def pooled(self, batches: Iterable[Batch], num_rows: int) -> Float[np.ndarray, "rows layers dim"]:
        """Computes the means of all layers over a row's frames, by `example_id`; 0 for a row without frames."""
        pooled = np.zeros((num_rows, self.model.num_layers + 1, self.model.dim), np.float32)
        for batch in batches:
            real = batch["example_id"] >= 0
            pooled[batch["example_id"][real]] = np.asarray(self._pool(self.params, batch))[real]
        return pooled

    def frames(self, batches: Iterable[Batch], layer: int) -> dict[int, Float[np.ndarray, "time dim"]]:
        """Computes one layer's hidden states; returns them by `example_id`."""
        rows = rows_by_id(functools.partial(self._layer, self.params, layer=layer), batches)
        return {row: hidden_TxD[:frames] for row, (hidden_TxD, frames) in rows.items()}

    def embed(
        self,
        recordings: Iterable[Recording],
        *,
        layer: int | None = None,
        max_seconds: float = 30.0,
        seconds_per_batch: float = 60.0,
    ) -> Iterator[Float[np.ndarray, "time dim"]]:
        """Computes hidden states of recordings of a layer, 0 to `model.num_layers`, by default the last.

        Recordings longer than `max_seconds` are cut at pauses and their parts encoded separately.

        Yields:
          For each recording in order its hidden states, one every `frame_samples` samples; their mean is an utterance
          embedding.

        Raises:
          AudioError: a recording cannot be read, or is too short for a single frame.
          ValueError: the layer does not exist.
        """
        depth = self.model.num_layers
        layer = depth if layer is None else layer
        if not 0 <= layer <= depth:
            raise ValueError(f"layer must lie between 0 (the input) and {depth} (the output), got {layer}")
        compute, rate = functools.partial(self._layer, self.params, layer=layer), self.frontend.mel.sample_rate
        max_seconds = min(max_seconds, float(self._window_seconds or max_seconds))
        for recording, rows in rows_of_recordings(compute, recordings, rate, max_seconds, seconds_per_batch):
            hidden_TxD = np.concatenate([hidden[:frames] for hidden, frames in rows])
            if not len(hidden_TxD):
                raise AudioError(name_of(recording), "too short for a single frame", "leave it out")
            yield hidden_TxD

    def all_layers(
        self, params: functional.Params, batch: Batch
    ) -> tuple[Float[Array, "layers batch time dim"], Int[Array, " batch"]]:
        """Computes the hidden states of all layers, float32 and 0 in padding, and the frames per row. Pure.

        Of a window that is filled with silence (`WhisperMel.window_seconds`) the frames of the recording count.
        """
        x_BxTxF, length_B = features(batch, self.frontend, None)
        encoder = functional.bind(self._graphdef, params)
        output, hidden = encoder(x_BxTxF, length_B, taps=tuple(range(self.model.num_layers)))
        hidden_LxBxTxD = jnp.stack([*hidden.values(), output])
        if self._window_seconds is None:
            return hidden_LxBxTxD, self.model.num_frames(length_B)
        mel = self.frontend.mel.replace(window_seconds=None)
        own_B = jnp.minimum(self.model.num_frames(mel.num_frames(batch["audio_length"])), hidden_LxBxTxD.shape[2])
        return jnp.where(frame_mask(own_B, hidden_LxBxTxD.shape[2])[..., None], hidden_LxBxTxD, 0), own_B

    @property
    def _window_seconds(self) -> int | None:
        return getattr(self.frontend.mel, "window_seconds", None)

    def _make(self, rngs) -> nnx.Module:
        return make_encoder(self.model, rngs=rngs)

    @functools.cached_property
    def _graphdef(self):
        return functional.declare(self._make).graphdef

    @functools.cached_property
    def _pool(self):
        def pool(params: functional.Params, batch: Batch) -> Float[Array, "batch layers dim"]:
            hidden_LxBxTxD, length_B = self.all_layers(params, batch)
            return jnp.swapaxes(hidden_LxBxTxD.sum(2) / jnp.maximum(length_B, 1)[:, None], 0, 1)

        return jax.jit(pool)

    @functools.cached_property
    def _layer(self):
        def one(params: functional.Params, batch: Batch, layer: int):
            hidden_LxBxTxD, length_B = self.all_layers(params, batch)
            return hidden_LxBxTxD[layer], length_B

        return jax.jit(one, static_argnames="layer")


def embed_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    out: Path,
    layer: int | None = None,
    frames: bool = False,
    max_seconds: float = 30.0,
    adapter: Path | None = None,
) -> None:
    """Writes embeddings of audio files: one vector per file, or one per frame.

    The NumPy file has `files`, their names, and `embeddings`, float32 [files, dim]. With --frames `embeddings` has the
    frames of all files concatenated, [frames, dim], `lengths` the frames per file, and `frame_seconds` the distance of
    frames. For a run trained by speaker_verification the vectors are x-vectors, unless a layer is given.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      files: audio of any format, sample rate, length and number of channels.
      out: the .npz file to write.
      layer: 0 is the input of the first layer; by default the last.
      frames: write a vector per frame instead of the mean.
      max_seconds: longer recordings are cut at pauses into parts of at most this length.
      adapter: folder of LoRA in peft's format, trained on this run.
    """
    arrays = {"files": np.array([str(file) for file in files])}
    if not frames and layer is None and adapter is None and "speaker_vectors" in task_of_run(checkpoint).abilities:
        embeddings = list(SpeakerVectors.load(checkpoint).vectors(files, max_seconds))
    else:
        encoder = SpeechEncoder.load(checkpoint, adapter)
        embeddings = list(encoder.embed(files, layer=layer, max_seconds=max_seconds))
    if frames:
        arrays |= {"embeddings": np.concatenate(embeddings), "lengths": np.array([len(x) for x in embeddings])}
        arrays |= {"frame_seconds": np.float64(encoder.frame_samples / encoder.frontend.mel.sample_rate)}
    else:
        arrays |= {"embeddings": np.stack([x.mean(axis=0) if x.ndim > 1 else x for x in embeddings])}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:  # numpy would add .npz to another name
        np.savez(file, **arrays)
    print(f"{out}: {' x '.join(map(str, arrays['embeddings'].shape))} from {len(files)} files")
