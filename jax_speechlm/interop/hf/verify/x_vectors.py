"""transformers on the folder of a speaker model, beside us: the same audio has to give the same vectors.

Where a layer over time is dilated, transformers takes frames of padding into the mean and deviation of the shorter rows
of a batch (it counts a layer's frames as if it were not), and into those of a clip whose features are filled up. Ours
are those of each clip alone, so that is how such a model is compared, and how it should be used there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.interop.hf.registry import Package
from jax_speechlm.interop.hf.verify.torch_models import distance, within
from jax_speechlm.interop.hf.verify.verdict import Check, guarded
from jax_speechlm.nn import functional
from jax_speechlm.objectives.heads.speaker_verification import SpeakerModel


def compare_vectors(
    run: LoadedRun, made: Package, model: Any, extract: Callable, waves: Sequence[np.ndarray]
) -> Iterator[Check]:
    """The checks of a `Wav2Vec2BertForXVector` that transformers opened, of the waves that are long enough."""
    head, classes = run.experiment.objective.head, run.experiment.objective.classes
    batches = [extract(wave, pad_to_multiple_of=1) for wave in waves]
    long_enough = [each["input_features"].shape[1] >= head.shortest for each in batches]
    batches = [each for each, is_long in zip(batches, long_enough, strict=True) if is_long]
    named = tuple(model.config.id2label[number] for number in range(len(classes)))
    yield Check("speakers", f"{len(named)}, in their order", named == classes)
    if not batches:
        yield Check("vectors", f"no clip has the {head.shortest} frames that a vector takes", False)
        return
    is_dilated = any(dilation > 1 and kernel > 1 for _, _, kernel, dilation in head.layers)
    if not is_dilated:
        batches.append(extract([wave for wave, is_long in zip(waves, long_enough, strict=True) if is_long]))
    how = f"{len(batches) - (not is_dilated)} clips alone" + (", and a batch" if not is_dilated else "")
    yield guarded("vectors", lambda: _vectors(model, _ours(run, made), batches, how))


def _ours(run: LoadedRun, made: Package) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`(features [B, T, F], lengths) -> x-vectors [B, E], what they are compared to the speakers by [B, E]`."""
    objective = run.experiment.objective
    make = lambda rngs: SpeakerModel(run.experiment.model, objective.head, len(objective.classes), rngs=rngs)  # noqa: E731
    graphdef = functional.declare(make).graphdef

    @jax.jit
    def vectors(params: functional.Params, x_BxTxF: jax.Array, length_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        module = functional.bind(graphdef, params)
        vector_BxE = module.speaker(module.encoder(x_BxTxF, length_B)[0], length_B)
        return vector_BxE, module.speaker.output(vector_BxE)

    return lambda x, length: jax.device_get(vectors(made.params, jnp.asarray(x), jnp.asarray(length)))


def _vectors(model: Any, ours: Callable, batches: Sequence[Any], how: str) -> Check:
    worst, longest = 0.0, max(batch["input_features"].shape[1] for batch in batches)
    for batch in batches:
        theirs = model(**{name: torch.tensor(value) for name, value in batch.items()})
        filler = longest - batch["input_features"].shape[1]
        x = np.pad(batch["input_features"], ((0, 0), (0, filler), (0, 0)))
        found = ours(x, batch["attention_mask"].sum(-1).astype(np.int32))
        for one, other in zip((theirs.embeddings, theirs.logits), found, strict=True):
            worst = max(worst, distance(one.numpy(), other))
    return within("vectors", worst, how)
