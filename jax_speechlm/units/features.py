"""Features that speech units are clusters of: MFCCs, hidden states of a trained encoder, or a codec's vectors."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array, Float, Int

from data_pipelines.storage.units import FrameGrid, Units, write_units
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import fingerprint
from jax_speechlm.frontend.frontend import AnyMel, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.mfcc import mfcc
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoder_base import frames_of
from jax_speechlm.models.encoders import make_encoder
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.codec import Codec
from jax_speechlm.training.runs import LoadedRun

Extract = Callable[[Any, Batch], tuple[Float[Array, "batch time features"], Int[Array, " batch"]]]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Features, ready to compute.

    Attributes:
      grid: where the frames lie.
      sample_rate: of the audio, in Hz.
      params: arrays that `extract` takes, on the device.
      extract: pure function `(params, batch) -> (features, frame counts)`; values beyond a row's frames are undefined.
    """

    grid: FrameGrid
    sample_rate: int
    params: functional.Params
    extract: Extract

    @classmethod
    def of(cls, mel: AnyMel, params: functional.Params, extract: Extract) -> "Extractor":
        """Returns features of the frames of a front end."""
        return cls(FrameGrid(mel.frame_samples, mel.context_samples), mel.sample_rate, params, extract)


class MFCC(Config):
    """Cepstra of a front end's frames, made from its mel bins."""

    kind: Literal["mfcc"] = "mfcc"
    mel: LogMel = LogMel()

    def open(self) -> Extractor:
        return Extractor.of(self.mel, {}, lambda _, batch: mfcc(batch["audio"], batch["audio_length"], self.mel))


class Hidden(Config):
    """Hidden states of a trained encoder.

    Attributes:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      layer: number of layers applied, from 1.
      digest: of the encoder's parameters up to this layer, to detect a changed checkpoint; "" skips the check.
    """

    kind: Literal["hidden"] = "hidden"
    checkpoint: str
    layer: pydantic.PositiveInt
    digest: str = ""

    def open(self) -> Extractor:
        """Reads the checkpoint; returns its extractor. Raises `CheckpointError` if it has changed, or no such layer."""
        run, config, params = self._read()
        experiment, frontend = run.experiment, run.experiment.frontend
        if self.digest and self.digest != fingerprint(params):
            raise CheckpointError(
                f"{self.checkpoint}: its encoder has changed since the units were fitted. Name a checkpoints/<step> "
                "folder that does not change, or fit them again: jax-speechlm units fit"
            )
        graphdef = functional.declare(lambda rngs: make_encoder(config, rngs=rngs)).graphdef
        has_final_norm = isinstance(config, Wav2Vec2EncoderConfig) and config.pre_norm  # which is not of the layer

        def extract(params: functional.Params, batch: Batch) -> tuple[Array, Array]:
            x_BxTxF, length_B = features(batch, frontend, None)
            taps = (config.num_layers,) if has_final_norm else ()
            output, tapped = functional.bind(graphdef, params)(x_BxTxF, length_B, taps=taps)
            return tapped.get(config.num_layers, output), frames_of(config, length_B)

        return Extractor(experiment.frame_grid, experiment.sample_rate, jax.device_put(params), extract)

    def pinned(self) -> "Hidden":
        """Returns these features with the run's newest `<step>` folder as checkpoint, and its digest."""
        run, _, params = self._read()
        return self.replace(checkpoint=str(run.checkpoint), digest=fingerprint(params))

    def _read(self) -> tuple[LoadedRun, ConformerConfig | Wav2Vec2EncoderConfig, functional.Params]:
        """Reads the run, and returns the config and the parameters of its encoder up to `layer`."""
        run = LoadedRun.read(self.checkpoint, on_host=True)
        path, experiment, params = run.checkpoint, run.experiment, run.params
        if isinstance(experiment.model, FastConformerConfig):
            raise CheckpointError(
                f"{path}: units need a frame for each feature vector, and a {experiment.model.kind} has fewer frames: "
                "name a run with a conformer, or with an encoder of samples"
            )
        if "encoder" not in params or not isinstance(experiment.model, ConformerConfig | Wav2Vec2EncoderConfig):
            raise CheckpointError(f"{path}: was trained by {experiment.objective.kind}, which has no speech encoder")
        if self.layer > experiment.model.num_layers:
            raise CheckpointError(
                f"{path}: its encoder has {experiment.model.num_layers} layers; layer {self.layer} does not exist"
            )
        encoder = params["encoder"] | {"layers": jax.tree.map(lambda x: x[: self.layer], params["encoder"]["layers"])}
        return run, experiment.model.replace(num_layers=self.layer), encoder


class CodecLatents(Config):
    """Vectors of a codec's encoder, whose nearest codes are the units.

    Attributes:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      digest: of the codec's parameters, to detect a changed checkpoint; "" skips the check.
    """

    kind: Literal["codec_latents"] = "codec_latents"
    checkpoint: str
    digest: str = ""

    def read(self) -> LoadedRun:
        """Reads the codec's run. Raises `CheckpointError` if it has changed, or is not of a codec."""
        run = LoadedRun.load(self.checkpoint, Codec, "turn speech into codes")
        if self.digest and self.digest != fingerprint(run.params["autoencoder"]):
            raise CheckpointError(
                f"{self.checkpoint}: the codec has changed since it became units. Name a checkpoints/<step> folder "
                "that does not change, and label with it again: jax-speechlm units label"
            )
        return run

    def open(self) -> Extractor:
        """Reads the checkpoint; returns its extractor. Raises `CheckpointError` as `read` does."""
        run = self.read()
        config = run.experiment.model
        graphdef = functional.declare(lambda rngs: WavTokenizer(config, rngs=rngs)).graphdef

        def extract(params: functional.Params, batch: Batch) -> tuple[Array, Array]:
            audio = batch["audio"].astype(jnp.float32) / 2.0**15
            return functional.bind(graphdef, params).latents(audio, batch["audio_length"])

        return Extractor.of(run.experiment.frontend.mel, run.params["autoencoder"], extract)


def units_of_codec(run: str | Path, out: Path | None = None) -> Units:
    """Writes a folder of units whose ids are a codec's codes: the vectors of its codebook.

    Args:
      run: a codec's run directory, or one of its checkpoints/<step> folders.
      out: the folder; by default `units` in the run's directory.

    Raises:
      CheckpointError: no checkpoint can be read, or it is not of a codec.
    """
    loaded = CodecLatents(checkpoint=str(run)).read()
    codec, model = jax.device_get(loaded.params["autoencoder"]), loaded.experiment.model
    features = CodecLatents(checkpoint=str(loaded.checkpoint), digest=fingerprint(codec))
    units = Units(
        out or Path(loaded.checkpoint).parent.parent / "units",
        np.asarray(codec["quantizer"]["vectors"]),
        model.hop,
        1 - model.hop,  # a partial hop has a code too
        {"features": features.model_dump(mode="json")},
        loaded.experiment.sample_rate,
        merges_repeats=False,
    )
    write_units(units)
    return units


Features = Annotated[MFCC | Hidden | CodecLatents, pydantic.Field(discriminator="kind")]
"""The features of a k-means, as `units.json` holds them."""


def read_features(about: dict[str, Any]) -> MFCC | Hidden | CodecLatents:
    """Returns the features that the description of a k-means names."""
    return pydantic.TypeAdapter(Features).validate_python(about)
