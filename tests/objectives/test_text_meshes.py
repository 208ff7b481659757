"""Objectives over text give the same loss and gradients on every mesh."""

from collections.abc import Iterable

import jax
import numpy as np
import pytest

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.nn import functional
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.mesh import MeshShape
from tests.objectives.text import MODEL, TOKENIZER, documents, pack

ONE, DATA, FSDP, MIXED = MeshShape(data=1), MeshShape(data=8), MeshShape(fsdp=8), MeshShape(data=2, fsdp=2, tensor=2)
LONG, LONG_MIXED = MeshShape(sequence=8), MeshShape(data=2, sequence=2, tensor=2)
CAUSAL = MODEL.replace(num_layers=1, num_heads=8, num_kv_heads=2, head_dim=4)
BOTH_WAYS = CAUSAL.replace(causal=False, head="transform")
NARROW = {"window": 3, "global_every": 2, "num_layers": 2}
# Rows of 24 tokens divide among the devices of a row, those of 26 do not.
CASES = {
    "causal_lm": (CausalLM(z_weight=1e-3), CAUSAL, 24, (DATA, FSDP, MIXED, LONG, LONG_MIXED)),
    "causal_lm, window": (CausalLM(), CAUSAL.replace(**NARROW), 26, (MeshShape(fsdp=2, sequence=4),)),
    "masked_lm": (MaskedLM(ratio=0.3), BOTH_WAYS, 24, (MIXED, LONG)),
    "masked_lm, window": (MaskedLM(ratio=0.3), BOTH_WAYS.replace(**NARROW), 26, (LONG_MIXED,)),
    "span_corruption": (SpanCorruption(ratio=0.3, sentinels=8), CAUSAL, 24, (MIXED, LONG_MIXED)),
    "unit_lm": (UnitLM(num_units=9), CAUSAL, 24, (DATA, MIXED, LONG)),
    "classification": (Classification(classes=("a", "b", "c")), BOTH_WAYS, 26, (MIXED, LONG_MIXED)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mesh_gives_the_single_device_loss_and_gradients(name):
    check_same(*CASES[name], devices=8)


def check_same(config, model, num_tokens: int, shapes: Iterable[MeshShape], devices: int):
    """That meshes give the loss and gradients that a single device gives."""
    rows = [documents(seed, [9, 4]) for seed in range(7)]
    batch = pack([*rows, []], num_tokens) | {"label": np.arange(8, dtype=np.int32) % 3}
    if config.kind == "unit_lm":  # half of the rows are speech
        batch["tokens"][::2] = np.where(batch["tokens"][::2] > 0, 26 + batch["tokens"][::2] % 9, 0)
        batch["samples"] = np.where(batch["tokens"] >= 26, 320, 0).astype(np.int32)
    objective = config.build(model, FrontEnd(), TOKENIZER)
    declaration = functional.declare(objective.make)
    # Half as large as training begins with: larger parameters magnify rounding, classification's up to the bound below.
    params = jax.tree.map(lambda leaf: leaf / 2, jax.device_get(functional.init(objective.make, jax.random.key(0))))

    def run(shape: MeshShape):
        mesh = meshes.make_mesh(shape, jax.devices()[: 1 if shape == ONE else devices])
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, meshes.param_shardings(mesh, declaration.axes, declaration.shapes))
            step = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
            (loss, _), gradients = step(placed, meshes.shard_batch(mesh, batch), jax.random.key(1))
            return float(loss), jax.device_get(gradients)

    loss, gradients = run(ONE)
    assert loss > 0
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-2
    for shape in shapes:
        other_loss, other_gradients = run(shape)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5)
