"""GPUs of a Slurm cluster, one process a GPU, by launch/slurm.sbatch; and processes of this machine."""

import sys
from pathlib import Path

from jax_speechlm.launching.job import Job, Run, Step, by_name

SCRIPTS = Path(__file__).parents[2] / "launch"


def start(job: Job) -> list[Step]:
    """Builds the command that submits the batch script, which requeues itself and so continues.

    All nodes have to share the run directory and the current folder.
    """
    job.require("slurm", platform="cuda", schemes=())
    environment = job.environment(MAX_RESTARTS=str(job.max_restarts))
    words = (
        *("env", *(f"{name}={value}" for name, value in environment.items())),
        *("sbatch", f"--job-name={job.name}", f"--output={job.name}.log"),
        *(f"--nodes={job.hosts_per_slice}", f"--ntasks-per-node={job.devices_per_host}"),
        *(f"--gpus-per-node={job.devices_per_host}", "--requeue" if job.max_restarts else "--no-requeue"),
        *(str(SCRIPTS / "slurm.sbatch"), *job.words[1:]),
    )
    return [Run(words)]


status = by_name("squeue --me --name={name}")
logs = by_name("tail --lines=50 {name}.log")
stop = by_name("scancel --me --name={name}")


def start_here(job: Job) -> list[Step]:
    """Builds the command that runs the job in processes of this machine, whatever its topology."""
    job.require("local", schemes=())
    launcher = (sys.executable, str(SCRIPTS / "local.py"))
    options = (f"--processes={job.processes}", f"--restarts={job.max_restarts}")
    environment = ("env", *job.env) if job.env else ()
    return [Run((*environment, *launcher, *options, "--", *job.words))]
