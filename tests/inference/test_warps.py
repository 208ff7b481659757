"""VTLN of a recognizer: every utterance gets the warp whose best path is likeliest."""

import dataclasses

import numpy as np
import pytest

from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.load import load
from tests.interop.tiny_runs import save, tiny_run

WARPS = (0.85, 1.0, 1.2)


def batch(rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    audio = np.cumsum(rng.standard_normal((rows, 8000)), axis=1) * 200 + 300 * rng.standard_normal((rows, 8000))
    lengths = np.array([8000, 5000, 6500], np.int32)
    return {"audio": audio.astype(np.int16), "audio_length": lengths, "example_id": np.arange(rows, dtype=np.int32)}


def test_utterances_get_their_likeliest_warp():
    run = tiny_run("ctc")
    found = Recognizer((run,), None, WARPS).posteriors(iter([batch()]))
    every = []
    for warp in WARPS:
        experiment = run.experiment
        frontend = experiment.frontend.replace(mel=experiment.frontend.mel.replace(warp=warp))
        alone = dataclasses.replace(run, experiment=experiment.replace(frontend=frontend))
        every.append(Recognizer((alone,)).posteriors(iter([batch()])))
    best = []
    for row in range(3):
        scores = [posteriors[row].max(-1).sum() for posteriors in every]
        best.append(int(np.argmax(scores)))
        np.testing.assert_allclose(found[row], every[best[-1]][row], atol=1e-4)
    assert len(set(best)) > 1
    assert Recognizer((run,), None, WARPS).decoding_description == "greedy + one of the warps 0.85, 1, 1.2"


def test_reports_have_a_folder_of_their_own_and_others_refuse(tmp_path):
    assert Decoding(warps=WARPS).name == "greedy-warped"
    assert Decoding(warps=WARPS, decoder="beam").name == "beam-warped"
    with pytest.raises(CheckpointError, match=r"\(nemo\) have no warps of frequency"):
        load(save(tmp_path / "nemo", tiny_run("ctc", variant="nemo")), Decoding(warps=WARPS))
    with pytest.raises(ValueError, match="warps are for runs that were trained by ctc"):
        load(save(tmp_path / "best_rq", tiny_run("classification")), Decoding(warps=WARPS))
