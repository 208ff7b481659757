"""Cloud TPU slices by queued resources: asked for, waited for, given a container on every host, and removed.

The commands follow cloud.google.com/tpu/docs/queued-resources and cloud.google.com/tpu/docs/multislice-introduction. A
container needs no Python of the host's, and Docker starts it again after a failure (`job.until_final`).
"""

import shlex

from jax_speechlm.launching.job import BUCKET_FOLDER, Job, Run, Step, until_final

# cloud.google.com/tpu/docs/runtimes, "PyTorch and JAX".
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}

RECLAIMED_SECONDS = 25
"""A spot slice has 30 seconds (cloud.google.com/compute/docs/instances/spot), of which its host needs some itself."""


def accelerator_type(job: Job) -> str:
    """Returns Google's name of a slice: v5litepod-16, v5p-512."""
    return job.accelerators.name.replace("v5e", "v5litepod")


def start(job: Job) -> list[Step]:
    """Builds the steps that request the slices, wait for them, and start a container on every host.

    A queued resource that already exists is used. One that is SUSPENDED after a preemption never recovers and is
    deleted first.
    """
    job.require("tpu-vm", "project", "zone", "image", platform="tpu", schemes=("gs://",))
    node = [f"--node-id={job.name}"]
    if job.accelerators.slices > 1:
        node = [f"--node-count={job.accelerators.slices}", f"--node-prefix={job.name}"]
    create = [
        *_gcloud(job, "create"),
        *node,
        f"--accelerator-type={accelerator_type(job)}",
        f"--runtime-version={RUNTIMES[job.accelerators.chip]}",
        *(["--spot"] if job.spot else []),
    ]
    acquire = f"""set -e
state() {{ {shlex.join(_describe(job))} 2> /dev/null || true; }}
if [[ $(state) =~ FAILED|SUSPENDED ]]; then {shlex.join(_delete(job))}; fi
if [[ -z $(state) ]]; then {shlex.join(create)}; fi
until [[ $(state) == ACTIVE ]]; do
    if [[ $(state) =~ FAILED|SUSPEND ]]; then echo "the queue gave nothing: $(state)" >&2; exit 1; fi
    sleep 30
done"""
    return [Run(("bash", "-c", acquire)), _everywhere(job, _container(job))]


def status(job: Job) -> list[Step]:
    """Asks for the state of the slices: ACTIVE once they are there, SUSPENDED after a preemption."""
    return [Run(_describe(job))]


def logs(job: Job) -> list[Step]:
    """Shows the last lines of every host."""
    return [_everywhere(job, f"sudo docker logs --tail=20 {job.name}")]


def stop(job: Job) -> list[Step]:
    """Lets all hosts save and leave, then removes the slices and their place in the queue."""
    save = _everywhere(job, f"sudo docker stop --time={job.grace_seconds(RECLAIMED_SECONDS)} {job.name}")
    return [save._replace(may_fail=True), Run(_delete(job))]


def _gcloud(job: Job, verb: str) -> tuple[str, ...]:
    job.require("tpu-vm", "project", "zone")
    where = f"--project={job.project}", f"--zone={job.zone}"
    return ("gcloud", "compute", "tpus", "queued-resources", verb, job.name, *where)


def _describe(job: Job) -> tuple[str, ...]:
    return (*_gcloud(job, "describe"), "--format=value(state.state)")


def _delete(job: Job) -> tuple[str, ...]:
    return (*_gcloud(job, "delete"), "--force", "--quiet")


def _everywhere(job: Job, command: str) -> Run:
    return Run((*_gcloud(job, "ssh"), "--node=all", "--worker=all", f"--command={command}"))


def _container(job: Job) -> str:
    """Returns the script for every host: mounts the bucket, removes an earlier container, starts the new one."""
    # Cloud TPU sets no variables for the hosts of a job: JAX queries the metadata server.
    environment = job.environment(JAX_SPEECHLM_DISTRIBUTED="1")
    grace = job.grace_seconds(RECLAIMED_SECONDS)
    run = [
        *("sudo", "docker", "run", "--detach", f"--name={job.name}", f"--restart=on-failure:{job.max_restarts}"),
        f"--stop-timeout={grace}",  # also when the host is shut down; Docker's own is 10 seconds
        *("--privileged", "--network=host", f"--volume={BUCKET_FOLDER}:{BUCKET_FOLDER}"),
        *(f"--env={name}={value}" for name, value in environment.items()),
        *(job.image, "sh", "-c", until_final('"$@"'), "run", *job.words),
    ]
    registry = job.image.split("/")[0]
    google = registry.endswith(("docker.pkg.dev", "gcr.io"))
    login = f"sudo gcloud auth configure-docker {shlex.quote(registry)} --quiet\n" if google else ""
    return f"""set -e
if ! mountpoint -q {BUCKET_FOLDER}; then
    command -v gcsfuse > /dev/null || {{ echo "this host has no gcsfuse" >&2; exit 1; }}
    sudo mkdir -p {BUCKET_FOLDER}
    sudo gcsfuse -o allow_other --implicit-dirs {shlex.quote(job.bucket.removeprefix("gs://"))} {BUCKET_FOLDER}
fi
{login}sudo docker stop --time={grace} {job.name} > /dev/null 2>&1 || true
sudo docker rm {job.name} > /dev/null 2>&1 || true
{shlex.join(run)}"""
