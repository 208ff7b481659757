"""A job, and the steps that launch it: commands to run and files to write, which can also be printed."""

import re
import shlex
import subprocess
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic
import yaml

from jax_speechlm.core.config import Config
from jax_speechlm.core.exit_status import FINAL
from jax_speechlm.parallel import chips

BUCKET_FOLDER = "/bucket"
"""Mount point of the bucket of a job's run directory."""
GRACE_SECONDS = 180
"""Seconds that a run may take to save after SIGTERM, unless its machine is reclaimed earlier."""

_PATTERNS = {
    # Kubernetes adds -slice-0-0 and five letters to it, of 63 characters.
    "name": (r"[a-z]([-a-z0-9]{0,37}[a-z0-9])?", "at most 39 letters a to z, digits and hyphens, a letter first"),
    "image": (r"([a-zA-Z0-9][\w.:/@-]*)?", "REGISTRY/NAME:TAG, of letters, digits and . : / @ _ -"),
    "project": (r"([a-z][a-z0-9.:-]*)?", "letters a to z, digits and . : -, a letter first"),
    "zone": (r"([a-zA-Z0-9][\w.:/@*-]*)?", "letters, digits and . : / @ * _ -, a letter or digit first"),
    "cluster": (r"([a-z][-a-z0-9]*)?", "letters a to z, digits and hyphens, a letter first"),
    "run_dir": (
        r"(?!.*://).*|(gs|s3)://[a-z0-9]([a-z0-9._-]*[a-z0-9])?(/(?!\.\.(/|$))[^/]*)*",
        "a folder, gs://bucket/folder or s3://bucket/folder, in a bucket without ..",
    ),
    "env": (r"[A-Za-z_]\w*=.*", "NAME=value"),
}
"""Pattern of each setting that gcloud, kubectl or a shell reads, and its description for error messages."""
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # line ends, other control characters, surrogates


class Job(Config):
    """A jax-speechlm command and the machines it runs on.

    Attributes:
      command: the words after `jax-speechlm`; usually given at the end of the command line, after `--`.
      topology: accelerators, named as in `jax-speechlm plan`: v5e-256, 2xv5p-512 (two slices), h100-64.
      name: name of the job at every launcher; starting a job again under the same name continues it.
      run_dir: folder of checkpoints and logs: a path that all hosts share, or gs://bucket/folder or s3://bucket/folder,
        which is mounted at /bucket on every host.
      image: container image, built from launch/Dockerfile.tpu or launch/Dockerfile.gpu.
      project: Google Cloud project.
      zone: of Google Cloud (us-west4-a); SkyPilot also takes cloud/region/zone.
      cluster: GKE cluster.
      spot: use machines that may be reclaimed at any time.
      max_restarts: most restarts by the launcher after failures.
      env: environment variables of the run, each NAME=value.
      processes: number of processes for the target "local".
    """

    command: tuple[str, ...] = ()
    topology: str = "v5e-16"
    name: str = "speech"
    run_dir: str = ""
    image: str = ""
    project: str = ""
    zone: str = ""
    cluster: str = ""
    spot: bool = False
    max_restarts: Annotated[int, pydantic.Field(ge=0, le=2**31 - 1)] = 20
    env: tuple[str, ...] = ()
    processes: pydantic.PositiveInt = 1

    @pydantic.field_validator("command", *_PATTERNS)
    @classmethod
    def _check_text(cls, value: str | tuple[str, ...], info: Any) -> str | tuple[str, ...]:
        pattern, description = _PATTERNS.get(info.field_name, (".*", ""))
        for text in (value,) if isinstance(value, str) else value:
            if any(unicodedata.category(character) in _CONTROLS for character in text):
                raise ValueError(f"{text!r}: line ends and other control characters are not passed to launchers")
            if not re.fullmatch(pattern, text, re.ASCII):
                raise ValueError(f"{text!r}: {info.field_name} takes {description}")
        return value

    @pydantic.field_validator("topology")
    @classmethod
    def _check_topology(cls, name: str) -> str:
        if chips.topology(name).spec.platform == "cpu":
            raise ValueError(f"{name}: a job needs TPUs or GPUs; the target local uses this machine's devices")
        return name

    @property
    def accelerators(self) -> chips.Topology:
        return chips.topology(self.topology)

    @property
    def hosts_per_slice(self) -> int:
        """Hosts of a TPU slice, or all nodes of a GPU job."""
        topology = self.accelerators
        is_gpu = topology.spec.platform == "cuda"
        return topology.shape[0] if is_gpu else max(topology.devices_per_slice // topology.spec.node, 1)

    @property
    def devices_per_host(self) -> int:
        return self.accelerators.devices_per_slice // self.hosts_per_slice

    def environment(self, **added: str) -> dict[str, str]:
        """Returns the environment variables of the run; the job's own override those of the target."""
        return added | dict(setting.split("=", 1) for setting in self.env)

    def grace_seconds(self, reclaimed: int) -> int:
        """Returns the seconds to save after SIGTERM; `reclaimed`: the target's limit for spot machines."""
        return min(GRACE_SECONDS, reclaimed) if self.spot else GRACE_SECONDS

    @property
    def bucket(self) -> str:
        """Returns the bucket of the run directory, gs://name or s3://name; empty for a path."""
        match = re.match(r"(gs|s3)://[^/]+", self.run_dir)
        return match.group() if match else ""

    @property
    def words(self) -> tuple[str, ...]:
        """Returns the command line that every process runs."""
        if not self.command:
            raise ValueError("no command to run: give it after `--`, such as -- pretrain --config demo/pretrain")
        words = ("jax-speechlm", *self.command)
        trains = self.command[0] in ("pretrain", "finetune")
        if not trains or any(word.split("=")[0] in ("--run-dir", "--run_dir") for word in words):
            return words
        run_dir = BUCKET_FOLDER + self.run_dir.removeprefix(self.bucket) if self.bucket else self.run_dir
        return (*words, f"--run-dir={run_dir or f'runs/{self.name}'}")

    def require(self, target: str, *settings: str, platform: str = "", schemes: tuple[str, ...] | None = None) -> None:
        """Raises ValueError if the job does not suit a target.

        Args:
          settings: those that the target needs.
          platform: of the accelerators that the target offers, "tpu" or "cuda".
          schemes: of the buckets that the run directory may be in, because hosts lose their disks with the job; if
            empty, it has to be a folder.
        """
        if platform and self.accelerators.spec.platform != platform:
            raise ValueError(f"{target} runs on {'TPUs' if platform == 'tpu' else 'GPUs'} only, not on {self.topology}")
        if missing := [name for name in settings if not getattr(self, name)]:
            raise ValueError(f"{target} needs {' and '.join(missing)}")
        if schemes and not self.bucket.startswith(schemes):
            forms = " or ".join(f"{scheme}bucket/folder" for scheme in schemes)
            raise ValueError(f"{target}: hosts lose their disks with the job: run_dir has to be {forms}")
        if schemes == () and self.bucket:
            raise ValueError(f"{target} mounts no buckets: run_dir has to be a folder, not {self.run_dir}")


class Run(NamedTuple):
    """A command to run on this machine; with `may_fail` its exit status is ignored."""

    words: tuple[str, ...]
    may_fail: bool = False


class Write(NamedTuple):
    """A file to write."""

    path: Path
    text: str


Step = Run | Write


def by_name(line: str) -> Callable[[Job], list[Step]]:
    """Returns an action of a launcher that runs one command line, in which {name} is the job's name."""
    return lambda job: [Run(tuple(word.format(name=job.name) for word in line.split()))]


def until_final(command: str) -> str:
    """Returns a shell script that runs a command and ends with 0 after statuses for which a restart would not help.

    For launchers that restart after any nonzero status. SIGTERM is passed on to the command.
    """
    final = "|".join(map(str, FINAL))
    return (
        f"""set +e; trap 'kill -TERM $! 2> /dev/null' TERM; {command} & run=$!; wait "$run"; status=$?; """
        'while kill -0 "$run" 2> /dev/null; do wait "$run"; status=$?; done; '  # the signal ends a wait
        f'case $status in {final}) echo "status $status: correct the error above, then start again"; exit 0;; esac; '
        'exit "$status"'
    )


class _Dumper(yaml.SafeDumper):
    def represent_str(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def manifest(document: dict[str, Any]) -> str:
    """Returns a document as YAML, with multi-line strings as literal blocks.

    Raises:
      ValueError: YAML does not reproduce the document.
    """
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)
    if yaml.safe_load(text) != document:
        raise ValueError(f"YAML cannot hold this job:\n{text}")
    return text


def script(steps: Sequence[Step]) -> str:
    """Returns the steps as a bash script that does the same as `execute`."""
    lines = ["set -e"]
    for step in steps:
        if isinstance(step, Write):
            text = step.text if step.text.endswith("\n") else step.text + "\n"
            end = "END-OF-FILE"
            while end in text.splitlines():
                end += "-"
            lines.append(f"mkdir -p {shlex.quote(str(step.path.parent))}")
            lines.append(f"cat > {shlex.quote(str(step.path))} << '{end}'\n{text}{end}")
        else:
            lines.append(shlex.join(step.words) + (" || true" if step.may_fail else ""))
    return "\n".join(lines) + "\n"


def execute(steps: Sequence[Step]) -> int:
    """Runs the steps in order, up to the first that fails; returns its exit status, or 0."""
    for step in steps:
        if isinstance(step, Write):
            step.path.parent.mkdir(parents=True, exist_ok=True)
            step.path.write_text(step.text)
            continue
        print(f"$ {shlex.join(step.words)}", flush=True)
        try:
            status = subprocess.run(step.words, check=False).returncode
        except FileNotFoundError as error:
            raise ValueError(f"{step.words[0]} is not installed here; --dry-run prints the command") from error
        if status and not step.may_fail:
            return status
    return 0
