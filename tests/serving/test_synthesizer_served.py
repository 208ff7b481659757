"""A run of task tts behind the endpoint: the samples of `synthesize`, by the command itself too."""

import contextlib
import io
import signal
import subprocess
import sys

import httpx
import jax
import numpy as np
import pytest
import soundfile

from data_pipelines.audio.wav import to_int16
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.nn import functional
from jax_speechlm.training.checkpoints import write
from jax_speechlm.training.runs import tokenizer_files
from tests.evaluation.runs import write_run
from tests.serving.service import serving
from tests.training import tiny

ROUTE = "/v1/audio/speech"
TEXT = "a bad cafe. a fed head. bead!"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a voice of three speakers and of a vocoder; their weights are random, tokens last some five frames."""
    folder, tokenizer = tmp_path_factory.mktemp("runs"), CharTokenizer("abcdefgh .!")
    experiment = tiny.experiment("tts")
    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    params = functional.init(objective.make, jax.random.key(0))
    params["acoustic"]["duration"]["out"]["bias"] = np.full(1, np.log(5), np.float32)
    meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(tokenizer), "units": None}
    write(folder / "voice", params, meta | {"plan": "", "step": 0})
    vocoder, mel = tiny.experiment("vocoder"), experiment.frontend.mel
    model = vocoder.model.replace(hop=mel.hop, window=4 * mel.hop)
    vocoder = vocoder.replace(frontend=vocoder.frontend.replace(mel=mel), model=model)
    return folder / "voice", write_run(folder / "vocoder", vocoder, None)


@pytest.fixture(scope="module")
def synthesizer(runs):
    voice, vocoder = runs
    return Synthesizer.load(voice, vocoder)


@pytest.fixture(scope="module")
def server(synthesizer):
    with serving(voice=synthesizer) as server:
        yield server


def ask(client: httpx.Client, **fields) -> httpx.Response:
    return client.post(ROUTE, json={"input": TEXT, "voice": "low", "response_format": "wav"} | fields)


def samples_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return soundfile.read(io.BytesIO(response.content), dtype="int16")[0]


def assert_same(samples: np.ndarray, expected: np.ndarray) -> None:
    """Compares samples of a stream, which are those of one pass to 1e-5, before and after rounding."""
    np.testing.assert_allclose(samples.astype(int), expected.astype(int), atol=1)


def test_speech_is_that_of_synthesize(server, synthesizer):
    for fields in ({}, {"voice": "high"}, {"speed": 2.0}):
        (speech,) = synthesizer.synthesize(TEXT, fields.get("voice", "low"), fields.get("speed", 1.0))
        assert len(speech.samples) > 10_000
        assert_same(samples_of(ask(server.client, **fields)), to_int16(speech.samples))
    first, other = (ask(server.client, voice=voice).content for voice in ("low", "high"))
    assert first != other


def test_the_command_synthesize_writes_the_same_file(server, runs, tmp_path):
    voice, vocoder = map(str, runs)
    file = tmp_path / "a.wav"
    assert cli.main(["synthesize", voice, TEXT, "--vocoder", vocoder, "--speaker", "low", "--out", str(file)]) == 0
    assert_same(samples_of(ask(server.client)), soundfile.read(file, dtype="int16")[0])


def test_it_comes_in_parts(server):
    with server.client.stream("POST", ROUTE, json={"input": TEXT, "voice": "low", "stream_format": "sse"}) as response:
        deltas = [line for line in response.iter_lines() if "speech.audio.delta" in line]
    assert len(deltas) >= 3


def test_what_cannot_be_spoken_is_named_before_anything_is_sent(server):
    for text, message in (("a bad cafe. a zoo.", "'z'"), ("a bad cafe. 😀", "😀"), ("...", "no words")):
        response = ask(server.client, input=text)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, "input", "invalid_input")
        assert message in error["message"]
        assert "/" not in error["message"]  # no path of this machine
    assert "low, middle, high" in ask(server.client, voice="alloy").json()["error"]["message"]


def test_the_longest_text_is_spoken(server):
    response = ask(server.client, input="a bad cafe. " * 341, speed=4)
    assert len(samples_of(response)) > 341 * 256


def test_the_page_gets_voices_and_the_spectrogram(server, synthesizer):
    model = server.client.get("/v1/models/voice").json()
    assert model["voices"] == ["low", "middle", "high"]
    assert model["card"]["sample rate"] == "16000 Hz"
    content = ask(server.client).content
    picture = server.client.post("/page/speech/log-mel", files={"file": content}).json()
    mel = synthesizer.experiment.frontend.mel
    assert picture["bins"] == mel.num_mel_bins
    assert picture["frames"] == mel.num_frames(len(samples_of(ask(server.client))))


def test_the_command_serves_a_voice(runs, synthesizer):
    voice, vocoder = runs
    code = "import sys; from jax_speechlm.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["serve", str(voice), "--vocoder", str(vocoder), "--port", "0"]  # what it compiles is cached by then
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("voice at http://127.0.0.1:")
        assert f"{ROUTE};" in line
        with contextlib.closing(httpx.Client(base_url=line.split()[2], timeout=120)) as client:
            (speech,) = synthesizer.synthesize(TEXT, "low")
            assert_same(samples_of(ask(client)), to_int16(speech.samples))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
