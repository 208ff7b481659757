"""The demo of speech synthesis, whole, on a minute of audio of our own making and with a tiny model."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import soundfile

from jax_speechlm.evaluation.synthesis_report import SynthesisReport
from jax_speechlm.inference.synthesize import Speech
from tests.test_end_to_end import RATE

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import demo_tts

CONFIG = """
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config, Layers, Postnet
from jax_speechlm.recipes.demo import voice

def config():
    shipped, layers = voice.config(), Layers(num_layers=1, ffn_dim=16, kernel_size=3)
    data = shipped.data.replace(row_seconds=(4.0,), max_seconds=4.0, seconds_per_batch=32, batch_multiple=8)
    model = FastSpeech2Config(dim=16, encoder=layers, decoder=layers, postnet=Postnet(num_layers=2, channels=8))
    return shipped.replace(data=data, model=model, num_steps=3, loop=shipped.loop.replace(log_every=1))
"""


def size(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24])


def test_it_goes_from_recordings_to_speech_pictures_and_a_table(tones, capsys):
    (tones / "tiny_voice.py").write_text(CONFIG)
    out = tones / "demo-tts"
    demo_tts.main(tones / "data", out, "tones", str(tones / "tiny_voice.py"))
    printed = capsys.readouterr().out
    for stage in ("prepare", "pitch", "train", "synthesise", "judge"):
        assert stage in printed
    for number in range(1, 6):
        samples, rate = soundfile.read(out / f"{number}.wav")
        assert rate == RATE
        frames = len(samples) // 256
        width, height = size(out / f"{number}.mel.png")
        assert height == 3 * (80 + 1 + 80)
        assert width >= 3 * frames
        assert size(out / f"{number}.alignment.png") == (3 * frames, 3 * (5 * 3 + 1))  # letters, spaces, boundaries
    assert not (out / "6.wav").exists()
    report = SynthesisReport.from_json((out / "judged" / "report.json").read_text())
    assert [row.name for row in report.rows] == ["natural", "griffin-lim copy", "voice + griffin-lim"]
    assert {column.name for column in report.columns} >= {"MCD", "log F0", "voicing error"}
    assert len(report.utterances) == 6
    logged = [json.loads(line) for line in (out / "voice" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if line["part"] == "train"] == [1, 2, 3]


def test_pictures_show_every_frame_of_a_token_and_both_spectrograms():
    speech = Speech(np.zeros(0, np.float32), RATE, np.array([1, 0, 2]), np.zeros((3, 2), np.float32))
    np.testing.assert_array_equal(demo_tts.alignment(speech), [[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    both = demo_tts.one_above_the_other(np.ones((2, 1)), np.zeros((2, 3)))
    np.testing.assert_array_equal(both, [[1, np.nan, np.nan]] * 2 + [[np.nan] * 3] + [[0, 0, 0]] * 2)
