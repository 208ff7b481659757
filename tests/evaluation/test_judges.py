"""Judges' processes: the protocol with a fake judge that crashes, hangs or talks nonsense, and the real worker."""

import json
import os
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from jax_speechlm.evaluation.judges import worker
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.judges.process import JudgeError, JudgeProcess

FAKE = r"""
import json, os, signal, sys, time
print(sys.argv[1], flush=True)
for line in sys.stdin:
    request = json.loads(line)
    what = os.path.basename(request["audio"])
    if what == "crash.wav":
        print("first line\nout of paper", file=sys.stderr)
        sys.exit(7)
    if what == "killed.wav":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "slow.wav":
        time.sleep(60)
    if what == "nonsense.wav":
        print("Loading model: 100%", flush=True)
    if what == "list.wav":
        print([1, 2], flush=True)
    if what == "endless.wav":
        sys.stdout.write("x" * 5_000_000); sys.stdout.flush()
    if what == "other.wav":
        request["id"] += 1
    print(json.dumps({"id": request["id"], "text": what}), flush=True)
"""
READY = json.dumps({"ready": {"fake": "1.0"}})


@pytest.fixture
def start(tmp_path):
    """Starts the fake judge with its first line."""
    program, opened = tmp_path / "fake.py", []
    program.write_text(FAKE)

    def start(first: str = READY, *, timeout: float = 20.0, start_timeout: float = 20.0) -> JudgeProcess:
        judge = JudgeProcess([sys.executable, str(program), first], timeout=timeout, start_timeout=start_timeout)
        opened.append(judge)
        return judge

    yield start
    for judge in opened:
        judge.close()


def test_answers_come_in_order(start):
    judge = start()
    assert judge.packages == {"fake": "1.0"}
    assert [judge.judge(Path(name)) for name in ("a.wav", "b c.wav")] == [{"text": "a.wav"}, {"text": "b c.wav"}]


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        ("crash.wav", "ended with status 7: out of paper"),
        ("killed.wav", "ended by SIGSEGV"),
        ("nonsense.wav", "an answer that is no JSON object while judging nonsense.wav: Loading model: 100%"),
        ("list.wav", "an answer that is no JSON object while judging list.wav: [1, 2]"),
        ("endless.wav", "an answer of more than 4,194,304 bytes while judging endless.wav"),
        ("other.wav", "an answer to another request while judging other.wav"),
    ],
)
def test_a_judge_that_fails_gives_the_reason(start, audio, reason):
    judge = start()
    with pytest.raises(JudgeError) as error:
        judge.judge(Path(audio))
    assert error.value.reason.startswith(reason)


def test_a_judge_that_hangs_is_ended_with_what_it_started(start):
    judge = start(timeout=0.3)
    before = time.monotonic()
    with pytest.raises(JudgeError, match=r"no answer within 0\.3 s while judging slow\.wav"):
        judge.judge(Path("slow.wav"))
    judge.close()
    assert time.monotonic() - before < 20
    with pytest.raises(ProcessLookupError):
        os.killpg(judge._process.pid, 0)


def test_a_judge_that_never_starts():
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(JudgeError, match=r"no answer within 0\.3 s while starting"):
        JudgeProcess(hangs, timeout=1.0, start_timeout=0.3)
    with pytest.raises(JudgeError, match="no-such-python does not start: No such file"):
        JudgeProcess(["no-such-python"], timeout=1.0)
    with pytest.raises(JudgeError, match=r"ended with status 1: ZeroDivisionError"):
        JudgeProcess([sys.executable, "-c", "1 / 0"], timeout=1.0)


def test_first_lines(start):
    with pytest.raises(JudgeError, match=r"paper is not installed: pip install 'jax_speechlm\[judges\]'"):
        start(json.dumps({"missing": "ModuleNotFoundError: No module named 'paper'", "module": "paper"}))
    with pytest.raises(JudgeError, match="OSError: the weights are damaged"):
        start(json.dumps({"missing": "OSError: the weights are damaged", "module": None}))
    with pytest.raises(JudgeError, match="unexpected answer at the start"):
        start(json.dumps({"id": 0}))


def test_another_interpreter_does_not_get_this_ones_packages(tmp_path, monkeypatch):
    """A script stands for the interpreter; it answers with its environment."""
    monkeypatch.setenv("PYTHONPATH", "/of/this/python")
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\nprintf \'{"ready": {"path": "%s"}}\\n\' "$PYTHONPATH"\ncat\n')
    other.chmod(0o755)
    with JudgeProcess([str(other), "worker.py"], timeout=5.0) as judge:
        assert judge.packages == {"path": ""}


def test_settings_that_are_missing(tmp_path):
    with pytest.raises(JudgeError, match="--whisper"):
        JudgeSettings().command("whisper")
    with pytest.raises(JudgeError, match=r"has no model\.bin"):
        JudgeSettings(whisper=tmp_path).command("whisper")
    (tmp_path / "model.bin").touch()
    command = JudgeSettings(whisper=tmp_path, judge_python=Path("/other/python")).command("whisper")
    assert command[0] == "/other/python"
    assert command[2:] == ["whisper", json.dumps({"model": str(tmp_path)})]


def run_worker(judge: str, package: str, source: str, folder: Path) -> JudgeProcess:
    """Starts the real worker with a fake package in place of the judge's own."""
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{worker.PACKAGES[judge]}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {worker.PACKAGES[judge]}\nVersion: 9.9\n")
    setup = f"import sys, runpy; sys.path.insert(0, {str(folder)!r}); sys.argv = ['worker', {judge!r}, '{{}}']; "
    setup += f"runpy.run_path({worker.__file__!r}, run_name='__main__')"
    return JudgeProcess([sys.executable, "-c", setup], timeout=60.0)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


SPHINX = """
print("welcome")  # on standard output, as packages do
class Decoder:
    def __init__(self, **options): self.busy = False
    def start_utt(self):
        if self.busy: raise RuntimeError("within an utterance")
        self.busy, self.bytes = True, b""
    def process_raw(self, data, full_utt):
        if len(data) == 2: raise RuntimeError("too short")
        self.bytes += data
    def end_utt(self):
        self.busy = False
        print("done")
    def hyp(self): return type("Best", (), {"hypstr": f"{len(self.bytes)} bytes"}) if any(self.bytes) else None
"""


def test_the_worker_keeps_what_packages_print_apart_and_outlives_bad_recordings(tmp_path):
    with run_worker("pocketsphinx", "pocketsphinx", SPHINX, tmp_path) as judge:
        assert judge.packages == {"pocketsphinx": "9.9"}
        assert judge.judge(write_wav(tmp_path / "a.wav", np.arange(50))) == {"text": "100 bytes"}
        assert judge.judge(write_wav(tmp_path / "b.wav", np.arange(1))) == {"error": "RuntimeError: too short"}
        assert judge.judge(write_wav(tmp_path / "c.wav", np.zeros(50))) == {"text": ""}
        assert judge.judge(write_wav(tmp_path / "none.wav", np.zeros(0))) == {"error": "ValueError: no samples"}
        assert "16 kHz" in judge.judge(write_wav(tmp_path / "d.wav", np.arange(50), rate=8_000))["error"]
        assert "FileNotFoundError" in judge.judge(tmp_path / "absent.wav")["error"]
        assert judge.judge(tmp_path / "a.wav") == {"text": "100 bytes"}


MOS = """
class dnsmos:
    @staticmethod
    def run(samples, sr):
        assert sr == 16_000
        return {"ovrl_mos": samples.max(), "sig_mos": samples.min(), "bak_mos": samples.sum(), "p808_mos": len(samples)}
"""


def test_scores_are_named_and_samples_are_scaled(tmp_path):
    with run_worker("dnsmos", "speechmos", MOS, tmp_path) as judge:
        answer = judge.judge(write_wav(tmp_path / "a.wav", np.array([16_384, -32_768, 0])))
    assert answer == {"scores": {"overall": 0.5, "signal": -1.0, "background": -0.5, "p808": 3.0}}


def test_the_worker_says_what_it_lacks():
    lacks = "import sys; sys.modules['resemblyzer'] = None; sys.argv = ['worker', 'resemblyzer', '{}']; import runpy; "
    with pytest.raises(JudgeError, match="resemblyzer is not installed"):
        JudgeProcess(
            [sys.executable, "-c", f"{lacks}runpy.run_path({worker.__file__!r}, run_name='__main__')"], timeout=9.0
        )


def test_no_judge_is_imported_with_the_package():
    """Judges are for evaluation alone: importing all evaluators loads none."""
    import subprocess

    program = (
        "import sys, jax_speechlm.evaluation.synthesis\n"
        "names = {'torch', 'faster_whisper', 'ctranslate2', 'pocketsphinx', 'speechmos', 'resemblyzer'}\n"
        "sys.exit(str(names & sys.modules.keys()) if names & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_judges_that_compare_get_the_reference(tmp_path):
    (tmp_path / "pystoi.py").write_text("def stoi(clean, changed, rate): return float(clean.sum() - changed.sum())")
    source = "def pesq(rate, clean, changed, mode): return len(clean) + len(changed) / 100"
    clean, changed = write_wav(tmp_path / "a.wav", np.full(50, 2**14)), write_wav(tmp_path / "b.wav", np.zeros(50))
    with run_worker("comparison", "pesq", source, tmp_path) as judge:
        assert judge.judge(changed, clean) == {"scores": {"pesq": 50.5, "stoi": 25.0}}
        assert "reference" in judge.judge(changed)["error"]
