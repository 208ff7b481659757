"""Every model has the properties that `verify_model` lists."""

import re
from pathlib import Path

import pytest

from jax_speechlm import models
from jax_speechlm.nn import functional
from tests.contracts.models import TOYS, verify_model


@pytest.mark.parametrize("name", TOYS)
def test_model(name):
    verify_model(name)


def test_every_file_of_models_has_a_toy():
    made = []
    for toy in TOYS.values():
        functional.declare(lambda rngs, toy=toy: made.append(toy.make(rngs)) or made[-1])
    declares = re.compile(r"^class \w+\((nnx\.Module|Vocoder)\)", re.MULTILINE)
    files = {path.stem for path in Path(models.__path__[0]).rglob("*.py") if declares.search(path.read_text())}
    # Discriminators take waveforms of one length, a voice has its models' parts; the objectives' contracts cover them.
    # An attention decoder is a part of the toy of an encoder with one. A transducer's parts take tokens, or the outputs
    # of both, word vectors take words and a text encoder-decoder two texts; the contracts of their objectives cover
    # them. The base of the encoders has their toys.
    covered = {"base", "encoder_base", "discriminators", "voice", "attention_decoder", "transducer", "word_vectors"}
    covered |= {"text_encoder_decoder"}
    assert {type(module).__module__.rpartition(".")[2] for module in made} == files - covered
