"""TPU slices of a GKE cluster, as a JobSet: one job a slice, one pod a host, all begun again when one fails.

Node selectors and limits follow cloud.google.com/kubernetes-engine/docs/how-to/tpus and tpu-multislice; the bucket is
mounted by Cloud Storage FUSE, cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-ephemeral.
"""

import shlex
from pathlib import Path
from typing import Any

from jax_speechlm.core.exit_status import FAILED, FINAL, STOPPED
from jax_speechlm.launching.cloud_tpu import accelerator_type
from jax_speechlm.launching.job import BUCKET_FOLDER, Job, Run, Step, Write, manifest

ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}

RECLAIMED_SECONDS = 15
"""A spot node leaves its pods half of its 30 seconds (cloud.google.com/kubernetes-engine/docs/concepts/spot-vms)."""


def start(job: Job) -> list[Step]:
    """Creates the JobSet; one of that name is removed first, which lets it save, once kubectl has read the new one."""
    path = Path("runs") / f"{job.name}.jobset.yaml"
    text = f"# The same, queued by Kueue: {xpk(job)}\n{manifest(jobset(job))}"
    create = "kubectl", "create", f"--filename={path}"
    return [Write(path, text), *_credentials(job), Run((*create, "--dry-run=client")), _remove(job), Run(create)]


def status(job: Job) -> list[Step]:
    """Shows the JobSet and its pods."""
    return [
        *_credentials(job),
        Run(("kubectl", "get", "jobset", job.name)),
        Run(("kubectl", "get", "pods", _label(job), "--output=wide")),
    ]


def logs(job: Job) -> list[Step]:
    """Shows the last lines of every host."""
    hosts = job.hosts_per_slice * job.accelerators.slices
    words = ("kubectl", "logs", _label(job), "--container=run", "--prefix", "--tail=20", f"--max-log-requests={hosts}")
    return [*_credentials(job), Run(words)]


def stop(job: Job) -> list[Step]:
    """Removes the JobSet; its pods get SIGTERM and save."""
    return [*_credentials(job), _remove(job)]


def jobset(job: Job) -> dict[str, Any]:
    """Returns the manifest of the JobSet, jobset.x-k8s.io/v1alpha2.

    A run stopped by SIGTERM exits with a nonzero status: Kubernetes would take 0 after a preemption for completed
    training.
    """
    job.require("gke", "image", platform="tpu", schemes=("gs://",))
    slices, hosts = job.accelerators.slices, job.hosts_per_slice
    environment = {"JAX_SPEECHLM_STOPPED_STATUS": str(STOPPED)}
    if slices * hosts > 1:
        environment["JAX_SPEECHLM_DISTRIBUTED"] = "1"  # GKE's own variables name the processes
    container = {
        "name": "run",
        "image": job.image,
        "command": [_literal(word) for word in job.words],
        "env": [{"name": name, "value": _literal(value)} for name, value in job.environment(**environment).items()],
        "ports": [{"containerPort": port} for port in (8471, 8080)],  # between hosts, and between slices
        "securityContext": {"privileged": True},  # lets the TPU driver lock memory
        "resources": {"limits": {"google.com/tpu": job.devices_per_host}},
        "volumeMounts": [{"name": "bucket", "mountPath": BUCKET_FOLDER}],
    }
    selector = {
        "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[job.accelerators.chip],
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, job.accelerators.shape)),
    }
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    fuse = {"bucketName": job.bucket.removeprefix("gs://"), "mountOptions": "implicit-dirs"}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_seconds(RECLAIMED_SECONDS),
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [{"name": "bucket", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": fuse}}],
    }
    template = {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": pod}
    final = {"containerName": "run", "operator": "In", "values": list(FINAL)}
    counts = {
        **{"parallelism": hosts, "completions": hosts, "backoffLimit": 0, "completionMode": "Indexed"},
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
    }
    # Kubernetes fails a job by its pod failure policy for an error that the user has to correct, and that is final.
    given_up = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            # Schedules all pods of a slice's job on one node pool, which is one slice.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": job.max_restarts, "rules": [given_up]},
            "replicatedJobs": [
                {"name": "slice", "replicas": slices, "template": {"spec": {**counts, "template": template}}}
            ],
        },
    }


def xpk(job: Job) -> str:
    """Returns the equivalent xpk command line; xpk refers to buckets by the names of storages attached before."""
    environment = job.environment(JAX_SPEECHLM_STOPPED_STATUS=str(STOPPED))
    words = [
        *("xpk", "workload", "create", f"--workload={job.name}", f"--cluster={job.cluster or 'my-cluster'}"),
        *(f"--{name}={getattr(job, name)}" for name in ("project", "zone") if getattr(job, name)),
        *(f"--tpu-type={accelerator_type(job)}", f"--num-slices={job.accelerators.slices}"),
        *(f"--docker-image={job.image}", f"--max-restarts={job.max_restarts}"),
        f"--restart-on-exit-codes={FAILED},{STOPPED}",  # xpk adds 42 and all from 127 on
        f"--termination-grace-period-seconds={job.grace_seconds(RECLAIMED_SECONDS)}",
        *(f"--env={name}={value}" for name, value in environment.items()),
        *(["--spot"] if job.spot else []),
        f"--storage={job.bucket.removeprefix('gs://')}",
        f"--command={shlex.join(job.words)}",
    ]
    return shlex.join(words)


def _literal(text: str) -> str:
    """Returns a text in which Kubernetes replaces no $(VARIABLE)."""
    return text.replace("$", "$$")


def _label(job: Job) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"


def _remove(job: Job) -> Run:
    """Removes the JobSet and waits until its pods have saved and are gone."""
    return Run(("kubectl", "delete", "jobset", job.name, "--ignore-not-found", "--cascade=foreground"))


def _credentials(job: Job) -> list[Step]:
    """Lets kubectl find the cluster, where the job names one; else kubectl's current one serves."""
    if not job.cluster:
        return []
    job.require("gke with a cluster", "project", "zone")
    words = "gcloud", "container", "clusters", "get-credentials", job.cluster
    return [Run((*words, f"--project={job.project}", f"--location={job.zone}"))]
