"""`jax-speechlm launch`: runs one job on any launcher."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_speechlm.launching import cloud_tpu, gke, job, skypilot, slurm

ACTIONS = ("start", "status", "logs", "stop")
TARGETS = {
    "tpu-vm": {name: getattr(cloud_tpu, name) for name in ACTIONS},
    "gke": {name: getattr(gke, name) for name in ACTIONS},
    "skypilot": {name: getattr(skypilot, name) for name in ACTIONS},
    "slurm": {name: getattr(slurm, name) for name in ACTIONS},
    "local": {"start": slurm.start_here},
}
EPILOG = """targets:
  tpu-vm     Cloud TPU slices by queued resources and a container (gcloud)
  gke        TPU slices of a GKE cluster by a JobSet (kubectl); the same by xpk:
             xpk workload create --workload=NAME --cluster=my-cluster --tpu-type=v5litepod-256 --num-slices=1
             --docker-image=IMAGE --command='jax-speechlm ...'; the manifest's first line has it in full
  skypilot   GPU nodes or a TPU slice of any cloud as a managed job (sky)
  slurm      GPU nodes of a Slurm cluster (sbatch)
  local      processes of this machine

Starting the same job again continues it from its last checkpoint. docs/launching.md explains each target.

Launchers start a failed job again by themselves, but not after an exit status of 2, 3 or 64: a wrong command line, a
plan that does not fit, an error that the user has to correct (jax-speechlm --help).
"""


def launch(argv: Sequence[str], prog: str) -> int:
    """Runs a launcher's action, or prints its shell script; returns the exit status."""
    import tyro

    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s TARGET [--job FILE] [--SETTING VALUE ...] [--action ACTION] [--dry-run] [-- COMMAND ...]",
        description="Starts, watches and stops one job on any launcher.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", nargs="?", choices=TARGETS, help=", ".join(TARGETS))
    parser.add_argument("--job", type=Path, help="a .json file with any of the settings below")
    parser.add_argument("--action", choices=ACTIONS, default="start", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, as a shell script")
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    known, rest = parser.parse_known_args(words[:end])
    described = job.Job.read(known.job) if known.job else job.Job()
    if command := words[end + 1 :]:
        described = described.replace(command=tuple(command))
    if {"-h", "--help"} & set(rest):
        print(parser.format_help(), "\nEvery setting of the job is an option too:\n")
    elif known.target is None:
        parser.error(f"name a target: {', '.join(TARGETS)}")
    described = tyro.cli(job.Job, prog=prog, default=described, args=rest)
    if known.action not in TARGETS[known.target]:
        raise ValueError(f"{known.target} runs in this terminal and has no {known.action}")
    steps = TARGETS[known.target][known.action](described)
    if known.dry_run:
        print(job.script(steps), end="")
        return 0
    return job.execute(steps)
