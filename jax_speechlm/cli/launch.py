"""`jax-speechlm launch`: runs one job on any launcher."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from jax_speechlm.cli.console import options
from jax_speechlm.launching import cloud_tpu, gke, skypilot, slurm
from jax_speechlm.launching.job import Job, execute, script

Action = Literal["start", "status", "logs", "stop"]
Target = Literal["tpu-vm", "gke", "skypilot", "slurm", "local"]
ACTIONS = get_args(Action)
_LAUNCHERS = {"tpu-vm": cloud_tpu, "gke": gke, "skypilot": skypilot, "slurm": slurm}
TARGETS = {
    **{name: {action: getattr(launcher, action) for action in ACTIONS} for name, launcher in _LAUNCHERS.items()},
    "local": {"start": slurm.start_here},
}


def launch(argv: Sequence[str], prog: str) -> int:
    """Runs `run` on a command line: the words after a bare `--` are the job's command, and --job gives its defaults."""
    end = argv.index("--") if "--" in argv else len(argv)
    own, command = argv[:end], argv[end + 1 :]
    files = [option.values[0] for option in options(own) if option.name == "job" and option.values]
    job = Job.read(Path(files[0])) if files else Job()
    if command:
        job = job.replace(command=tuple(command))
    return tyro.cli(functools.partial(run, job=job), prog=prog, args=own)


def run(
    target: tyro.conf.Positional[Target],
    job: Annotated[Job, tyro.conf.arg(name="")],
    file: Annotated[Path | None, tyro.conf.arg(name="job")] = None,
    action: Action = "start",
    dry_run: bool = False,
) -> int:
    """Starts, watches and stops one job on any launcher.

    Words after a bare `--` are the job's command: jax-speechlm launch gke --job job.json -- pretrain --config mine.py

    targets:
      tpu-vm     Cloud TPU slices by queued resources and a container (gcloud)
      gke        TPU slices of a GKE cluster by a JobSet (kubectl); the same by xpk:
                 xpk workload create --workload=NAME --cluster=my-cluster --tpu-type=v5litepod-256 --num-slices=1
                 --docker-image=IMAGE --command='jax-speechlm ...'; the manifest's first line has it in full
      skypilot   GPU nodes or a TPU slice of any cloud as a managed job (sky)
      slurm      GPU nodes of a Slurm cluster (sbatch)
      local      processes of this machine

    Starting the same job again continues it from its last checkpoint. docs/launching.md explains each target.

    Launchers start a failed job again by themselves, but not after an exit status of 2, 3 or 64: a wrong command line,
    a plan that does not fit, an error that the user has to correct (jax-speechlm --help).

    Args:
      target: the launcher.
      job: the job, whose settings are options.
      file: a .json file with any settings of the job.
      action: what to do with the job.
      dry_run: print what would be done, as a shell script.

    Returns:
      The exit status.
    """
    del file  # in the defaults of `job`
    if action not in TARGETS[target]:
        raise ValueError(f"{target} runs in this terminal and has no {action}")
    steps = TARGETS[target][action](job)
    if dry_run:
        print(script(steps), end="")
        return 0
    return execute(steps)
