"""Commands under other locales, with repeated options, without the devices that were asked for."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from jax_speechlm import cli
from jax_speechlm.cli.console import repeated_option
from jax_speechlm.parallel.hardware import DeviceError
from jax_speechlm.parallel.platforms import tpu_is_attached
from jax_speechlm.training import checkpoints


def python(*words: str, **environment: str | None) -> subprocess.CompletedProcess:
    """Runs Python with changed environment variables; None removes one."""
    changed = {name: value for name, value in (os.environ | environment).items() if value is not None}
    return subprocess.run([sys.executable, *words], capture_output=True, env=changed, timeout=120)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--data.sets a --data.sets b", "--data.sets"),
        ("--data.sets=a --data.sets b", "--data.sets"),
        ("--run-dir a --run_dir b", "--run-dir"),
        ("--data.sets a b --data.speed 1.1", None),
        ("--from a --from b", None),
        ("--vary a=1,2 --vary b=1,2", None),
        ("--job a.json -- pretrain --job b", None),
    ],
)
def test_repeated_option_is_refused(argv, expected):
    assert repeated_option(argv.split()) == expected


def test_command_with_a_repeated_option_does_not_run(capsys):
    assert cli.main(["pretrain", "--data.sets", "a", "--data.sets", "b"]) == 2
    assert "--data.sets A B" in capsys.readouterr().err


@pytest.mark.parametrize("ioencoding", [None, "ascii"])
def test_locale_without_utf8_passes_other_text(ioencoding):
    program = (
        "import sys; from jax_speechlm.cli.console import use_utf8; use_utf8(); "
        "print(sys.argv[1] == chr(233) + chr(0x4f60), sys.argv[1], open(sys.argv[2], 'w').encoding)"
    )
    result = python(
        "-c",
        program,
        "é你",
        os.devnull,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING=ioencoding,
    )
    assert result.returncode == 0, result.stderr
    text = "é你".encode() if ioencoding is None else rb"\xe9\u4f60"
    assert result.stdout.split() == [b"True", text, b"utf-8"]


def test_argument_that_is_not_utf8_is_named_not_a_traceback(capsys, monkeypatch):
    def encode(*args, **kwargs):
        "\udce9".encode()

    monkeypatch.setattr(cli, "_run", encode)
    assert cli.main(["generate", "runs/lm", "\udce9"])
    assert "not UTF-8" in capsys.readouterr().err


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jax-speechlm 0.")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_absent_tpu_prints_no_errors():
    if tpu_is_attached():
        pytest.skip("a TPU is attached")
    result = python("-c", "import jax_speechlm, jax; print(jax.devices()[0].platform)", JAX_PLATFORMS=None)
    assert (result.stdout, result.stderr) == (b"cpu\n", b"")


def test_attached_tpu_is_seen(tmp_path):
    card = tmp_path / "sys/bus/pci/devices/0000:00:04.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x1ae0\n")
    (card / "class").write_text("0x020000\n")  # a network card of the same vendor
    assert not tpu_is_attached(tmp_path, {})
    (card / "class").write_text("0x120000\n")
    assert tpu_is_attached(tmp_path, {})
    assert tpu_is_attached(tmp_path / "dev", {"TPU_ACCELERATOR_TYPE": "v5litepod-16"})
    (tmp_path / "vm/dev/vfio").mkdir(parents=True)
    (tmp_path / "vm/dev/vfio/vfio").touch()
    assert not tpu_is_attached(tmp_path / "vm", {})
    (tmp_path / "vm/dev/vfio/0").touch()
    assert tpu_is_attached(tmp_path / "vm", {})


@pytest.mark.parametrize("platforms", ["cuda", "nonsense"])
def test_missing_platform_is_named_with_the_remedy(platforms):
    program = (
        "from jax_speechlm.parallel.hardware import DeviceError, devices\n"
        "try: devices()\nexcept DeviceError as error: print(error)"
    )
    result = python("-c", program, JAX_PLATFORMS=platforms)
    assert result.stdout.startswith(f"JAX_PLATFORMS={platforms}: JAX cannot use that platform".encode()), result.stderr


def test_missing_platform_is_not_a_damaged_checkpoint(tmp_path, monkeypatch):
    def absent():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    checkpoint = checkpoints.write(tmp_path, {"w": np.zeros(1, np.float32)}, {"step": 1, "experiment": {}})
    monkeypatch.setattr("jax_speechlm.parallel.hardware.jax.devices", absent)
    with pytest.raises(DeviceError, match="cpu"):
        checkpoints.read(checkpoint)
