import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_speechlm.interop.hf import wav2vec2_bert
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.models.conformer import Conformer, ConformerConfig
from jax_speechlm.nn import functional

CONFIG = ConformerConfig(input_dim=6, dim=8, num_layers=3, num_heads=2, kernel_size=5, left_max=6, right_max=3)
GOLDEN = Path(__file__).parents[1] / "golden" / "conformer.npz"


@pytest.fixture(scope="module")
def params():
    return {"encoder": functional.init(lambda rngs: Conformer(CONFIG, rngs=rngs), jax.random.key(0))}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


def test_there_and_back_is_exact(params):
    head = {"kernel": np.ones((8, 5), np.float32), "bias": np.arange(5, dtype=np.float32)}
    state_dict = wav2vec2_bert.to_hugging_face(params | {"head": head}, CONFIG)
    again = read(wav2vec2_bert.sources(state_dict, CONFIG))
    jax.tree.map(np.testing.assert_array_equal, again, params | {"head": head})

    bare = wav2vec2_bert.to_hugging_face(params, CONFIG)
    assert "masked_spec_embed" in bare
    jax.tree.map(np.testing.assert_array_equal, read(wav2vec2_bert.sources(bare, CONFIG)), params)


def test_exports_the_names_and_arrays_that_hugging_face_has(golden):
    theirs = {name[8:]: golden[name] for name in golden.files if name.startswith("weights/")}
    config = wav2vec2_bert.config_from_hugging_face(json.loads(str(golden["config"])))
    ours = wav2vec2_bert.to_hugging_face(read(wav2vec2_bert.sources(theirs, config)), config)
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}
    for name in theirs.keys() - {"wav2vec2_bert.masked_spec_embed"}:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_config_there_and_back():
    values = wav2vec2_bert.config_to_hugging_face(CONFIG, vocab_size=7)
    assert values["vocab_size"] == 7
    assert values["intermediate_size"] == 32
    assert wav2vec2_bert.config_from_hugging_face(values) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embeddings_type": "rotary"}, "position_embeddings_type='rotary'"),
        ({"add_adapter": True}, "add_adapter=True"),
    ],
)
def test_forms_without_counterpart_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        wav2vec2_bert.config_from_hugging_face(wav2vec2_bert.config_to_hugging_face(CONFIG) | change)


def test_a_missing_setting_is_the_class_default():
    values = wav2vec2_bert.config_to_hugging_face(CONFIG)
    del values["hidden_size"]
    assert wav2vec2_bert.config_from_hugging_face(values).dim == 1024


def test_state_dicts_that_do_not_fit_are_refused(params):
    state_dict = wav2vec2_bert.to_hugging_face(params, CONFIG)
    with pytest.raises(ValueError, match=r"no place for, such as 'encoder\.layers\.2"):
        wav2vec2_bert.sources(state_dict, CONFIG.replace(num_layers=2))
    with pytest.raises(ValueError, match=r"has no 'encoder\.layers\.3.*of 4 layers"):
        wav2vec2_bert.sources(state_dict, CONFIG.replace(num_layers=4))
    with pytest.raises(ValueError, match="does not fit dim=16"):
        wav2vec2_bert.sources(state_dict, CONFIG.replace(dim=16))
