"""OpenAI's own client, and the models of its responses, on every format that the service answers in."""

import json

import httpx
import numpy as np
import pytest

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.serving.admission import Limits
from tests.serving.service import RATE, Server, encoded, serving
from tests.trained_tones import QUIET, random_text, speak, trained_run

openai = pytest.importorskip("openai")
audio, Model = pytest.importorskip("openai.types.audio"), openai.types.Model

SILENCE = encoded(np.zeros(RATE, np.int16))


@pytest.fixture(scope="module")
def server():
    with serving(Recognizer.load(trained_run()), Limits(max_megabytes=2)) as server:
        yield server


@pytest.fixture(scope="module")
def spoken() -> tuple[bytes, str]:
    """A file of two utterances with a pause between them, and its text."""
    rng = np.random.default_rng(1)
    first, second = random_text(rng, 20), random_text(rng, 20)
    pause = (QUIET * rng.normal(size=3 * RATE)).astype(np.int16)
    return encoded(np.concatenate([speak(first, 7)[0], pause, speak(second, 8)[0]])), f"{first} {second}"


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(server: Server, content: bytes, **fields):
    return client_of(server).audio.transcriptions.create(file=("a.wav", content), model="whisper-1", **fields)


def test_every_format_is_what_the_client_expects(server, spoken):
    content, text = spoken
    assert ask(server, content).text == ask(server, content, response_format="json").text == text
    assert ask(server, content, response_format="text").strip() == text
    assert ask(server, content, response_format="srt").startswith("1\n00:00:")
    assert ask(server, content, response_format="vtt").startswith("WEBVTT\n")
    verbose = ask(
        server, content, response_format="verbose_json", timestamp_granularities=["word", "segment"], language="en"
    )
    assert (verbose.text, verbose.language, len(verbose.words)) == (text, "en", len(text.split()))
    assert verbose.duration == pytest.approx(len(content) / 2 / RATE, abs=0.01)
    assert " ".join(segment.text for segment in verbose.segments) == text
    decode = server.service.transcriber.tokenizer.decode
    for number, segment in enumerate(verbose.segments):
        assert segment.id == number
        assert 0 <= segment.seek / 100 <= segment.start < segment.end <= verbose.duration
        assert decode(segment.tokens) == segment.text


@pytest.mark.parametrize("content", ["spoken", "silence"])
@pytest.mark.parametrize("language", [None, "en"])
def test_json_responses_have_every_field_that_the_schema_requires(server, spoken, content, language):
    """Validated strictly; the client itself passes over what is missing."""
    fields = {"timestamp_granularities[]": ["word", "segment"]} | ({"language": language} if language else {})
    content = spoken[0] if content == "spoken" else SILENCE
    for format, model in (("json", audio.Transcription), ("verbose_json", audio.TranscriptionVerbose)):
        response = server.post(content, response_format=format, **fields)
        assert response.status_code == 200
        model.model_validate_json(response.content, strict=True)
    models = server.client.get("/v1/models").json()
    for each in [*models["data"], server.client.get("/v1/models/tones").json()]:
        Model.model_validate(each, strict=True)


def test_translations_have_their_own_schema(spoken):
    class Translator(Recognizer):
        task = "translate"

    with serving(Translator.load(trained_run())) as server:
        create = client_of(server).audio.translations.create
        assert create(file=("a.wav", spoken[0]), model="x").text == spoken[1]
        response = server.client.post(
            "/v1/audio/translations", files={"file": spoken[0]}, data={"response_format": "verbose_json"}
        )
        found = audio.TranslationVerbose.model_validate_json(response.content, strict=True)
        assert (found.language, found.text) == ("english", spoken[1])


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_stream_has_deltas_and_then_the_whole(server, spoken, format):
    content, text = spoken
    *deltas, done = ask(server, content, stream=True, response_format=format)
    assert len(deltas) >= 2  # it comes in parts
    for event in deltas:
        audio.TranscriptionTextDeltaEvent.model_validate(event.model_dump(), strict=True)
    audio.TranscriptionTextDoneEvent.model_validate(done.model_dump(), strict=True)
    assert "".join(event.delta for event in deltas) == done.text == text
    (done,) = ask(server, SILENCE, stream=True)
    assert (done.type, done.text) == ("transcript.text.done", "")
    response = server.post(content, stream="true")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    assert server.post(content, stream="false").json() == {"text": text}
    assert server.client.get("/health").json()["requests"] == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(({"stream": True, "response_format": format}, "stream") for format in ("verbose_json", "srt", "vtt")),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"include": ["logprobs"]}, "include[]"),
        ({"extra_body": {"stream": "perhaps"}}, "stream"),
    ],
)
def test_what_is_not_given_is_refused_and_not_passed_over(server, spoken, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, spoken[0], **fields)
    assert (refused.value.param, refused.value.code) == (param, "invalid_value")


def test_errors_of_a_stream_are_errors_of_the_client(server, monkeypatch, spoken):
    with pytest.raises(openai.BadRequestError) as refused:  # before the first event: a status
        list(ask(server, b"no audio" * 100, stream=True))
    assert refused.value.code == "bad_audio"
    with pytest.raises(openai.APIStatusError) as refused:
        ask(server, b"0" * (3 * 2**20), stream=True)
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")

    segments = Recognizer.segments

    def broken(self, *args, **options):
        yield next(segments(self, *args, **options))
        raise MemoryError("0x1234")

    monkeypatch.setattr(Recognizer, "segments", broken)
    events = iter(ask(server, spoken[0], stream=True))
    assert next(events).type == "transcript.text.delta"
    with pytest.raises(openai.APIError) as failed:
        next(events)
    assert failed.value.code == "internal_error"
    assert "0x" not in str(failed.value)
    assert server.client.get("/health").json()["requests"] == 0


def test_a_client_that_leaves_its_stream_takes_its_work_along(server, spoken):
    with httpx.stream(
        "POST", f"{server.url}/v1/audio/transcriptions", files={"file": spoken[0]}, data={"stream": "1"}
    ) as response:
        line = next(response.iter_lines())
        assert json.loads(line.removeprefix("data: "))["type"] == "transcript.text.delta"
    for _ in range(200):
        if server.client.get("/health").json()["requests"] == 0:
            return
        httpx.get(f"{server.url}/health")
    raise AssertionError("the request is still at hand")
