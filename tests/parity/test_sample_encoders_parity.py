"""wav2vec 2.0, HuBERT, WavLM and data2vec in the hands of plain transformers, in and out, on tiny random models."""

import json

import pytest

from jax_speechlm.interop.hf import wav2vec2
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.training.runs import LoadedRun

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": [8, 8, 12], "conv_kernel": [10, 8, 4], "conv_stride": [5, 8, 4], "num_conv_pos_embedding_groups": 4,
    "tdnn_dim": [12, 10], "tdnn_kernel": [3, 2], "tdnn_dilation": [1, 1], "xvector_output_dim": 8,
    "classifier_proj_size": 10,
}  # fmt: skip
OF_FAMILY = {
    "Wav2Vec2": {"num_conv_pos_embeddings": 16, "num_codevectors_per_group": 6, "codevector_dim": 8}
    | {"proj_codevector_dim": 8},
    "Hubert": {"num_conv_pos_embeddings": 9},
    "WavLM": {"num_conv_pos_embeddings": 16, "num_buckets": 16, "max_bucket_distance": 20},
    "Data2VecAudio": {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3},
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
VOCAB = {"|": 0, "a": 1, "b": 2, "ö": 3, "'": 4, "[UNK]": 5, "[PAD]": 6}


def write(folder, architecture, **changes):
    """What the recipes of transformers end with: a model, its feature extractor, and perhaps a tokenizer."""
    torch.manual_seed(0)
    family = architecture.removesuffix(wav2vec2.ARCHITECTURES[architecture])
    settings = SMALL | OF_FAMILY[family] | changes | {"id2label": {0: "no", 1: "yes", 2: "maybe"}}
    if architecture.endswith("CTC"):
        settings |= {"vocab_size": len(VOCAB), "pad_token_id": VOCAB["[PAD]"]}
    model = getattr(transformers, architecture)(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():  # nowhere 0 or 1
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    has_mask = settings.get("feat_extract_norm") == "layer"
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=has_mask).save_pretrained(folder)
    if architecture.endswith("CTC"):
        (folder / "made.json").write_text(json.dumps(VOCAB))
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": None, "eos_token": None}
        transformers.Wav2Vec2CTCTokenizer(str(folder / "made.json"), **special).save_pretrained(folder)
        (folder / "made.json").unlink()


FORMS = [(name, {}) for name in wav2vec2.ARCHITECTURES]
FORMS += [(f"{family}ForCTC", LAYER) for family in ("Wav2Vec2", "Hubert", "WavLM")]
FORMS += [("HubertModel", {"feat_proj_layer_norm": False})]
SUM = {"use_weighted_layer_sum": True}
FORMS += [("WavLMForXVector", SUM), ("Wav2Vec2ForSequenceClassification", SUM | LAYER)]


@pytest.mark.parametrize(("architecture", "changes"), FORMS, ids=lambda part: part if isinstance(part, str) else "")
def test_a_folder_passes_its_whole_check_in_and_out(tmp_path, architecture, changes):
    write(tmp_path / "theirs", architecture, **changes)
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert verdict.is_full
    verdict = write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again")
    assert verdict.is_full
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == [architecture]
