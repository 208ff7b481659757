"""Machines of any cloud by SkyPilot, as a managed job, which SkyPilot moves elsewhere after a preemption.

Fields follow docs.skypilot.co/en/latest/reference/yaml-spec.html.
"""

import re
import shlex
from pathlib import Path
from typing import Any

from jax_speechlm.core.exit_status import STOPPED
from jax_speechlm.launching.cloud_tpu import RUNTIMES, accelerator_type
from jax_speechlm.launching.job import BUCKET_FOLDER, Job, Run, Step, Write, by_name, manifest, until_final

GPUS = {"a100": "A100-80GB", "h100": "H100", "h200": "H200", "b200": "B200"}
PORT = 8476


def start(job: Job) -> list[Step]:
    """Hands the task to SkyPilot's controller, which keeps it running."""
    path = Path("runs") / f"{job.name}.sky.yaml"
    text = manifest(task(job))
    return [Write(path, text), Run(("sky", "jobs", "launch", "--detach-run", "--yes", str(path)))]


status = by_name("sky jobs queue")  # SkyPilot has no list of one job
logs = by_name("sky jobs logs --name={name}")
stop = by_name("sky jobs cancel --yes --name={name}")


def task(job: Job) -> dict[str, Any]:
    """Returns the task's YAML document: one process a GPU node, or one on every host of a TPU slice.

    A run stopped by SIGTERM exits with a status that makes SkyPilot restart it. SkyPilot restarts after every nonzero
    status, so the job exits with 0 after an error that the user has to correct.
    """
    job.require("skypilot", schemes=("gs://", "s3://"))
    target = job.accelerators
    if target.slices > 1:
        raise ValueError(f"skypilot: a job has one TPU slice, not {target.slices}; gke and tpu-vm join several")
    environment = {"JAX_SPEECHLM_STOPPED_STATUS": str(STOPPED)}
    lines = ["set -e"]
    if target.spec.platform == "tpu":
        nodes, extra = 1, "tpu"  # SkyPilot counts a slice as one node, and runs the command on each of its hosts
        hardware = {
            "accelerators": f"tpu-{accelerator_type(job)}",
            "accelerator_args": {"runtime_version": RUNTIMES[target.chip]},
        }
        environment["JAX_SPEECHLM_DISTRIBUTED"] = "1"
    else:
        nodes, extra = job.hosts_per_slice, "cuda"
        hardware = {"accelerators": f"{GPUS[target.chip]}:{job.devices_per_host}"}
        if nodes > 1:
            lines.append(f'export JAX_COORDINATOR_ADDRESS="$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):{PORT}"')
            lines.append('export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"')
    if job.image:
        code = {}
        hardware["image_id"] = f"docker:{job.image}"
    else:
        activate = "conda activate jax-speechlm"
        setup = f"conda create --yes --name jax-speechlm python=3.11\n{activate}\npip install '.[{extra}]'"
        code = {"workdir": ".", "setup": setup}
        lines.append(activate)
    infra = job.zone or ("gcp" if target.spec.platform == "tpu" else "")
    if re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", job.zone):
        infra = f"gcp/{job.zone.rsplit('-', 1)[0]}/{job.zone}"
    return {
        "name": job.name,
        "num_nodes": nodes,
        "resources": {
            **({"infra": infra} if infra else {}),
            **hardware,
            "use_spot": job.spot,
            "job_recovery": {"max_restarts_on_errors": job.max_restarts, "recover_on_exit_codes": [STOPPED]},
        },
        "envs": job.environment(**environment),
        "file_mounts": {BUCKET_FOLDER: {"source": job.bucket, "mode": "MOUNT"}},
        **code,
        "run": "\n".join([*lines, until_final(shlex.join(job.words))]),
    }
