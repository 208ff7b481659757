"""Adapters of one recognizer, chosen by a request."""

import jax
import numpy as np
import pytest

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.interop.hf.peft import write_adapter
from jax_speechlm.nn.lora import LoRA
from tests.interop.test_adapters import random_updates
from tests.serving.service import encoded, serving
from tests.trained_tones import speak, trained_run

SETTINGS = LoRA(rank=1, alpha=1.0, targets=())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A recognizer of tones, and adapters of it: one that changes nothing and one that ruins it."""
    recognizer, adapters = Recognizer.load(trained_run()), {}
    for name, scale in (("same", 0.0), ("ruined", 5.0)):
        folder = tmp_path_factory.mktemp(name)
        updates = jax.tree.map(lambda leaf, scale=scale: leaf * scale, random_updates(recognizer.run, SETTINGS))
        write_adapter(folder, updates, SETTINGS, recognizer.run)
        adapters[name] = recognizer.with_adapter(folder)
    with serving(recognizer, adapters=adapters) as server:
        yield server


def test_a_request_chooses_an_adapter_by_its_model(server):
    audio = encoded(speak("cab")[0])
    texts = {name: server.post(audio, model=name).json()["text"] for name in ("tones", "whisper-1", "tones:same")}
    assert set(texts.values()) == {"cab"}
    ruined = server.service._transcribers["tones:ruined"]
    assert (
        server.post(audio, model="tones:ruined").json()["text"] == next(iter(ruined.transcribe([audio]))).text != "cab"
    )
    assert server.post(audio).json()["text"] == "cab"


def test_adapters_are_listed_and_others_are_not_found(server):
    names = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
    assert names == ["tones", "tones:same", "tones:ruined"]
    response = server.post(encoded(np.zeros(16000, np.int16)), model="tones:other")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "the models here are tones, tones:same, tones:ruined"
