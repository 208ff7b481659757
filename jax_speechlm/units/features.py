"""Features that speech units are clusters of: MFCCs, or the hidden states of a layer of a trained encoder."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pydantic
from jaxtyping import Array, Float, Int

from jax_speechlm.core.batch import Batch
from jax_speechlm.core.config import Config
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.frontend.frontend import features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.mfcc import mfcc
from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.training.runs import LoadedRun

Extract = Callable[[Any, Batch], tuple[Float[Array, "batch time features"], Int[Array, " batch"]]]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Features, ready to compute.

    Attributes:
      mel: the front end that defines the frames.
      params: arrays that `extract` takes, on the device.
      extract: pure function `(params, batch) -> (features, frame counts)`; values beyond a row's frames are undefined.
    """

    mel: LogMel
    params: functional.Params
    extract: Extract


class MFCC(Config):
    """Cepstra of a front end's frames, made from its mel bins."""

    kind: Literal["mfcc"] = "mfcc"
    mel: LogMel = LogMel()

    def open(self) -> Extractor:
        return Extractor(self.mel, {}, lambda _, batch: mfcc(batch["audio"], batch["audio_length"], self.mel))


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
        frontend = run.experiment.frontend
        if self.digest and self.digest != _digest(params):
            raise CheckpointError(
                f"{self.checkpoint}: its encoder has changed since the units were fitted. Name a checkpoints/<step> "
                "folder that does not change, or fit them again: jax-speechlm units fit"
            )
        graphdef = functional.declare(lambda rngs: Conformer(config, rngs=rngs)).graphdef

        def extract(params: functional.Params, batch: Batch) -> tuple[Array, Array]:
            x_BxTxF, length_B = features(batch, frontend, None)
            return functional.bind(graphdef, params)(x_BxTxF, length_B)[0], length_B

        return Extractor(frontend.mel, jax.device_put(params), extract)

    def pinned(self) -> "Hidden":
        """Returns these features with the run's newest `<step>` folder as checkpoint, and its digest."""
        run, _, params = self._read()
        return self.replace(checkpoint=str(run.checkpoint), digest=_digest(params))

    def _read(self) -> tuple[LoadedRun, ConformerConfig, functional.Params]:
        """Reads the run, and returns the config and the parameters of its encoder up to `layer`."""
        run = LoadedRun.read(self.checkpoint, on_host=True)
        path, experiment, params = run.checkpoint, run.experiment, run.params
        if isinstance(experiment.model, FastConformerConfig):
            raise CheckpointError(
                f"{path}: units need a frame for each feature vector, and a {experiment.model.kind} has fewer frames: "
                "name a run with a conformer"
            )
        if "encoder" not in params or not isinstance(experiment.model, ConformerConfig):
            raise CheckpointError(f"{path}: was trained by {experiment.objective.kind}, which has no speech encoder")
        if self.layer > experiment.model.num_layers:
            raise CheckpointError(
                f"{path}: its encoder has {experiment.model.num_layers} layers; layer {self.layer} does not exist"
            )
        encoder = params["encoder"] | {"layers": jax.tree.map(lambda x: x[: self.layer], params["encoder"]["layers"])}
        return run, experiment.model.replace(num_layers=self.layer), encoder


Features = Annotated[MFCC | Hidden, pydantic.Field(discriminator="kind")]
"""The features of a k-means, as `units.json` holds them."""


def read_features(about: dict[str, Any]) -> MFCC | Hidden:
    """Returns the features that the description of a k-means names."""
    return pydantic.TypeAdapter(Features).validate_python(about)


def _digest(params: functional.Params) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]
