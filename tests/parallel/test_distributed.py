"""Which environments make a process one of several; the processes themselves are tested in tests/launch."""

import pytest

from jax_speechlm.parallel.distributed import arguments


def test_jax_variables_say_all():
    environment = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert arguments(environment) == {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}
    assert arguments(environment | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    del environment["JAX_PROCESS_ID"]
    with pytest.raises(ValueError, match="needs JAX_PROCESS_ID in the environment"):
        arguments(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"JAX_SPEECHLM_DISTRIBUTED": "1"},
    ],
)
def test_other_launchers_are_left_to_jax(environment):
    assert arguments(environment) == {}


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_NTASKS": "2"}, {"TPU_WORKER_HOSTNAMES": "localhost"}]
)
def test_one_process_is_alone(environment):
    """SLURM_NTASKS without a step is a batch script, or a shell that salloc opened."""
    assert arguments(environment) is None
