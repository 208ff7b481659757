"""A recognizer and a voice at one address: what one says, the other writes down."""

import pytest

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.serving.admission import Limits, Requests
from jax_speechlm.serving.app import make_app
from jax_speechlm.serving.speech import Synthesis
from tests.serving.service import serving
from tests.serving.tone_voice import ToneVoice
from tests.trained_tones import speak, trained_run


class Speaker(ToneVoice):
    """Says words of a, b and c in the tones that the recognizer knows."""

    def tone(self, sentence, speaker=None, speed=1.0):
        return (speak(sentence)[0] / 32768).astype("float32")


@pytest.fixture(scope="module")
def server():
    with serving(Recognizer.load(trained_run()), voice=Speaker()) as server:
        yield server


def test_what_one_says_the_other_writes_down(server):
    speech = server.client.post("/v1/audio/speech", json={"input": "cab ba. acb.", "response_format": "wav"})
    assert server.post(speech.content).json() == {"text": "cab ba acb"}


def test_both_are_listed_and_the_rest_is_refused(server):
    client = server.client
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tones", "voice"]
    tasks = [client.get(f"/v1/models/{name}").json()["task"] for name in ("tones", "voice")]
    assert tasks == ["transcribe", "synthesize"]
    assert client.get("/health").json().keys() == {"status", "model", "requests", "heard", "spoken"}
    message = client.post("/v1/audio/translations", files={"file": b"x"}).json()["error"]["message"]
    assert "/v1/audio/transcriptions" in message
    assert "/v1/audio/speech" in message
    assert client.get("/v1/models/other").json()["error"]["message"] == "the models here are tones, voice"


def test_each_has_a_picture_of_its_own_features(server):
    speech = server.client.post("/v1/audio/speech", json={"input": "cab.", "response_format": "wav"})
    for route in ("/page/log-mel", "/page/speech/log-mel"):
        picture = server.client.post(route, files={"file": speech.content}).json()
        assert picture["bins"] == 16
        assert picture["seconds"] == pytest.approx(len(speech.content) / 32_000, abs=0.01)
        assert server.client.post(route, files={"file": b"junk" * 100}).json()["error"]["code"] == "bad_audio"


def test_two_voices_at_one_route_are_refused():
    requests = Requests(Limits())
    voices = [Synthesis(ToneVoice(), name, requests) for name in ("one", "two")]
    with pytest.raises(ValueError, match="two runs have the same route, /v1/audio/speech"):
        make_app(requests, voices)
    requests.close()
    for voice in voices:
        voice.close()
