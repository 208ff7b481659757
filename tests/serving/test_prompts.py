"""The field `prompt` of OpenAI's form, by OpenAI's own client."""

import dataclasses
import json

import numpy as np
import pytest

from jax_speechlm.inference.asr.answer import Fallback
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.interop.hf.import_ import import_run
from tests.interop.foreign_folders import write_whisper
from tests.serving.service import encoded, serving
from tests.trained_tones import speak, trained_run

openai = pytest.importorskip("openai")

CLIP = np.random.default_rng(2).normal(0, 2000, 16_000).astype(np.int16)


def drawn(model):
    """A recognizer whose texts are all drawn, as those of a random model have no words else."""
    return dataclasses.replace(model, fallback=Fallback(temperatures=(0.0, 0.7), log_prob=0.0))


def ask(server, audio, **fields) -> str:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    return client.audio.transcriptions.create(file=("a.wav", encoded(audio)), model="whisper-1", **fields).text


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder / "hf", multilingual=False)
    import_run(folder / "hf", folder / "run")
    return folder / "run"


def text_after(whisper, prompt: str | None) -> str:
    """The text that `transcribe --prompt` gives."""
    return next(drawn(open_transcriber(whisper, Decoding(prompt=prompt))).transcribe([CLIP])).text


def test_a_request_has_its_own_prompt(whisper):
    with serving(drawn(open_transcriber(whisper))) as server:
        texts = {prompt: ask(server, CLIP, prompt=prompt) for prompt in ("the cat", "sat on", "  ")}
        assert ask(server, CLIP) == texts.pop("  ") == text_after(whisper, None)
        assert texts == {prompt: text_after(whisper, prompt) for prompt in texts}
        assert len({*texts.values(), ask(server, CLIP)}) == 3
        prompted = [server.service._prompted("tones", prompt)[0] for prompt in texts]
        assert prompted[0]._programs is prompted[1]._programs
        events = server.post(encoded(CLIP), prompt="the cat", stream="true")
        assert json.dumps(texts["the cat"]) in events.text


def test_of_a_long_prompt_the_end_is_read_and_it_replaces_that_of_the_server(whisper):
    served = drawn(open_transcriber(whisper, Decoding(prompt="sat on")))
    long = "the cat " * 2000
    assert len(served.tokenizer.encode(long)) > served._programs.most_context
    with serving(served) as server:
        assert ask(server, CLIP) == text_after(whisper, "sat on")
        assert ask(server, CLIP, prompt=long) == text_after(whisper, long)


def test_runs_that_read_no_text_ignore_it():
    with serving(Recognizer.load(trained_run())) as server:
        assert ask(server, speak("cab")[0], prompt="Szell, Brno") == "cab"
        encode = {server.service._prompted("tones", prompt)[1] for prompt in ("", "Szell", "Brno")}
        assert len(encode) == 1  # so their windows share batches
