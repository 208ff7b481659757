"""Which environments make a process one of several; the processes themselves are tested in tests/launch."""

import shutil
import subprocess
import sys

import pytest
from jax._src import clusters

from jax_speechlm.parallel.distributed import arguments

JAX = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
GIVEN = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}
# The variables that launchers set: srun, Open MPI 4's mpirun, GKE for the slices of a JobSet.
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.9:8080"}


def without(environment, name):
    return {other: value for other, value in environment.items() if other != name}


def test_jax_variables_say_all():
    assert arguments(JAX) == GIVEN
    assert arguments(JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


@pytest.mark.parametrize("name", JAX)
def test_some_of_them_are_an_error_that_names_the_others(name):
    with pytest.raises(ValueError, match=f"needs {name} in the environment"):
        arguments(without(JAX, name))


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_COORDINATOR_ADDRESS": "host:1234"} | SLURM,
        {"JAX_COORDINATOR_ADDRESS": "host:1234"} | without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri"),  # as Open MPI 5
        without(JAX, "JAX_PROCESS_ID") | {"JOB_COMPLETION_INDEX": "3"},
    ],
    ids=["slurm", "open-mpi", "kubernetes"],
)
def test_a_launcher_numbers_the_processes_of_a_given_address(environment):
    assert arguments(environment) == GIVEN


def test_an_address_to_meet_at_is_missing_in_open_mpi_5():
    with pytest.raises(ValueError, match="-x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        arguments(without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri"))


@pytest.mark.parametrize(
    ("environment", "cluster", "address", "count", "process"),
    [
        (SLURM, "SlurmCluster", "node3:61447", 4, 3),
        (OPEN_MPI, "OmpiCluster", "10.96.0.1:", 4, 3),
        (GKE, "GkeTpuCluster", "a:8482", 2, 1),
        (GKE | SLICES, "GkeTpuCluster", "10.0.0.9:8482", 4, 3),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"} | SLICES, "GkeTpuCluster", "10.0.0.9:8482", 2, 1),
    ],
    ids=["slurm", "open-mpi", "gke", "gke-slices", "gke-slices-of-one-host"],
)
def test_other_launchers_are_left_to_jax_which_reads_them(environment, cluster, address, count, process, monkeypatch):
    assert arguments(environment) == {}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = getattr(clusters, cluster)
    if cluster == "GkeTpuCluster":
        module = "jax._src.clusters.cloud_tpu_cluster"
        monkeypatch.setattr(f"{module}.running_in_cloud_tpu_vm", True)
        monkeypatch.setattr(f"{module}.get_tpu_env_value_from_metadata", lambda name: None)  # a machine's, over HTTP
        monkeypatch.setattr(found, "wait_for_coordinator", lambda *_: None)
    assert found.is_env_present()
    assert found.get_coordinator_address(1, None).startswith(address)
    assert (found.get_process_count(), found.get_process_id()) == (count, process)


def test_a_cloud_tpu_machine_has_to_say_so():
    assert arguments({"JAX_SPEECHLM_DISTRIBUTED": "1"}) == {}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "2"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_one_process_is_alone(environment):
    """SLURM_NTASKS without a step is a batch script, or a shell that salloc opened."""
    assert arguments(environment) is None


@pytest.mark.skipif(not shutil.which("mpirun"), reason="needs Open MPI: apt-get install openmpi-bin")
def test_a_real_open_mpi_starts_processes_that_find_each_other():
    program = "import jax; from jax_speechlm.parallel.distributed import processes_where, session\n"
    program += "with session(): print('process', jax.process_index(), processes_where(jax.process_index() == 1))"
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("process")]
    assert sorted(lines) == ["process 0 [1]", "process 1 [1]"], done.stdout + done.stderr
