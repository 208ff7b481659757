"""The judges themselves, where they are installed: in this Python, or in that of JAX_SPEECHLM_JUDGE_PYTHON."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.judges.process import JudgeProcess
from tests.evaluation.test_judges import write_wav
from tests.evaluation.test_speech_distance import noise, voice

PYTHON = os.environ.get("JAX_SPEECHLM_JUDGE_PYTHON", sys.executable)
WHISPER = os.environ.get("JAX_SPEECHLM_WHISPER")
SETTINGS = JudgeSettings(judge_python=Path(PYTHON), whisper=WHISPER and Path(WHISPER))


@pytest.fixture
def open_judge():
    """Opens a judge, or skips the test where its package is not installed."""
    opened = []

    def open_judge(name: str, module: str) -> JudgeProcess:
        if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
            pytest.skip(f"{module} is not installed in {PYTHON}: pip install 'jax_speechlm[judges]'")
        opened.append(JudgeProcess(SETTINGS.command(name), timeout=120.0))
        return opened[-1]

    yield open_judge
    for judge in opened:
        judge.close()


@pytest.fixture
def clips(tmp_path):
    """WAV files of a voice-like tone of 1.5 s, of noise, of 0.1 s, and of silence."""
    sounds = {"tone": voice(150, 1.5), "noise": noise(0, 16_000), "short": noise(1, 1_600), "silent": np.zeros(1_600)}
    return {name: write_wav(tmp_path / f"{name}.wav", 32_768 * samples) for name, samples in sounds.items()}


def answers(judge: JudgeProcess, clips, names: str) -> list[dict]:
    return [judge.judge(clips[name]) for name in names.split()]


def test_pocketsphinx_does_not_depend_on_earlier_audio(open_judge, clips):
    judge = open_judge("pocketsphinx", "pocketsphinx")
    first, noisy, again, *_ = answers(judge, clips, "tone noise tone short silent")
    assert first == again == judge.judge(clips["tone"])
    assert set(first) == set(noisy) == {"text"}


def test_dnsmos_scores_are_in_range(open_judge, clips):
    judge = open_judge("dnsmos", "speechmos")
    for answer in answers(judge, clips, "tone noise short silent"):
        assert answer["scores"].keys() == {"overall", "signal", "background", "p808"}
        assert all(0.5 < score < 5.5 for score in answer["scores"].values())


def test_resemblyzer_gives_unit_vectors(open_judge, clips):
    judge = open_judge("resemblyzer", "resemblyzer")
    vector = np.array(judge.judge(clips["tone"])["vector"])
    assert vector.shape == (256,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)
    assert judge.judge(clips["silent"])["error"] == "no speech found"


def test_whisper_repeats_itself_exactly(open_judge, clips):
    if WHISPER is None:
        pytest.skip("JAX_SPEECHLM_WHISPER names no folder of weights")
    judge = open_judge("whisper", "faster_whisper")
    found = answers(judge, clips, "tone noise short silent tone noise short silent")
    assert found[:4] == found[4:]
    assert all(set(answer) == {"text"} for answer in found)
