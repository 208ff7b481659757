"""The same on sixteen devices, which takes a process of its own."""

import os
import subprocess
import sys

import pytest

from tests import quick_xla

SPEECH = """
from tests.training import test_state, tiny
experiment = tiny.experiment("ctc")
one = test_state.run(*test_state.ONE, experiment, steps=(0,))
for shape in (MeshShape(data=2, fsdp=2, sequence=2, tensor=2), MeshShape(data=4, sequence=4)):
    test_state.check_same(experiment, *one, shape=shape, devices=16, steps=(0,))
"""
TEXT = """
from tests.contracts.objectives import verify_on_mesh
shapes = [
    MeshShape(replica=2, data=1, fsdp=2, sequence=4),
    MeshShape(data=2, fsdp=2, sequence=2, tensor=2),
    MeshShape(fsdp=8, tensor=2),
]
for name in ("causal_lm transformer", "masked_lm transformer"):
    for shape in shapes:
        verify_on_mesh(name, shape, devices=16)
"""


@pytest.mark.parametrize("code", [SPEECH, TEXT], ids=["speech", "text"])
def test_sixteen_devices_give_what_one_gives(code):
    code = f"import jax; assert jax.device_count() == 16\nfrom jax_speechlm.parallel.mesh import MeshShape\n{code}"
    environment = os.environ | {"XLA_FLAGS": quick_xla.on_devices(16)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
