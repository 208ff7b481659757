import json

import pydantic
import pytest

from jax_speechlm.models.transformer_config import SIZES, LearnedPositions, TransformerConfig

OLD_DEFAULTS = {
    "causal": True, "norm": "rms", "norm_epsilon": 1e-6, "post_norm": False, "bias": False, "gated": True,
    "activation": "silu", "query_key_norm": True, "embedding_norm": False, "prediction_head": False, "tied": True,
}  # fmt: skip
ENCODER = {
    "causal": False, "norm": "layer", "norm_epsilon": 1e-5, "activation": "gelu", "query_key_norm": False,
    "embedding_norm": True, "prediction_head": True,
}  # fmt: skip
POST_NORM = {"norm_epsilon": 1e-12, "post_norm": True, "bias": True, "gated": False}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, TransformerConfig.qwen3()),
        ({"tied": False}, TransformerConfig.qwen3(tied=False)),
        ({"query_key_norm": False}, TransformerConfig.llama()),
        ({"query_key_norm": False, "tied": False}, TransformerConfig.llama(tied=False)),
        (ENCODER, TransformerConfig.modernbert()),
        (ENCODER | POST_NORM, TransformerConfig.bert(positions=None)),
        ({"causal": False, "prediction_head": True}, TransformerConfig(causal=False, head="transform")),
        ({"gated": False}, TransformerConfig(feedforward="silu")),
        ({"embedding_norm": True}, TransformerConfig(norm_placement="pre_embedding")),
    ],
)
def test_settings_of_earlier_versions_give_the_same_form(old, new, whole):
    """`whole`: a `config.json` holds every setting, Python code only the ones that differ from the defaults."""
    old = OLD_DEFAULTS | old if whole else old
    assert TransformerConfig.from_json(json.dumps({"kind": "transformer"} | old)) == new
    assert TransformerConfig.from_json(new.model_dump_json()) == new


def test_a_choice_under_both_names_and_a_form_that_never_was_are_refused():
    with pytest.raises(pydantic.ValidationError, match="feedforward replaces gated of earlier versions"):
        TransformerConfig(gated=False, feedforward="gelu")
    with pytest.raises(pydantic.ValidationError, match="post_norm: no such form; set norm_placement to one of pre, "):
        TransformerConfig(post_norm=True)


def test_presets_take_shapes_and_other_settings():
    shape = {"dim": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "ffn_dim": 12}
    for preset in (
        TransformerConfig.qwen3,
        TransformerConfig.llama,
        TransformerConfig.modernbert,
        TransformerConfig.bert,
    ):
        assert preset(**shape) == preset().replace(**shape)
    assert TransformerConfig.qwen3() == TransformerConfig() == SIZES["5M"]
    assert TransformerConfig.bert().positions == LearnedPositions(token_types=2)
    assert TransformerConfig.bert(positions=None).positions is None
