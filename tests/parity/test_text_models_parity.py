"""Text encoders, heads on them, and GPT-2, as transformers itself saves them: runs, and folders again."""

import numpy as np
import pytest
from tokenizers import processors

import jax_speechlm
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import TEXTS, byte_level
from tests.interop.test_flax_weights import to_flax
from tests.parity.test_import_parity import SMALL, word_pieces

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
ROBERTA |= {"mask_token": "<mask>"}
SHAPES = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 96},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 28, "n_positions": 96},
}
LONG = "the cat sat on the mat, " * 9


def enclose_pairs(tokenizer, single, pair):
    """Makes a tokenizer put special tokens around a text, and around two."""
    names = {part.partition(":")[0] for part in pair.split() if not part.startswith("$")}
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def save(folder, architecture, **changes):
    """Writes a randomly initialised model and its tokenizer; returns the model."""
    torch.manual_seed(0)
    model_type = families.MODEL_TYPES[architecture]
    if model_type in ("gpt2", "mistral", "qwen3"):
        special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        made = byte_level("<|endoftext|>")
    elif "roberta" in model_type:
        special, made = ROBERTA, byte_level(*dict.fromkeys(ROBERTA.values()))
        enclose_pairs(made, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    else:
        special, made = BERT, word_pieces(TEXTS, BERT)
        enclose_pairs(made, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if model_type == "bert" else [])]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **special)
    settings = SHAPES.get(model_type, SMALL) | {"vocab_size": len(tokenizer) + 3, "initializer_range": 0.3}
    if model_type == "mistral":
        settings |= {"num_key_value_heads": 1}
    if "roberta" in model_type:
        settings |= {"max_position_embeddings": len(tokenizer) + 96}
    if model_type == "modernbert":
        settings |= {"local_attention": 8, "initializer_cutoff_factor": 3.0}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    settings |= {f"{name}_id": id_ for name, id_ in ids.items() if name not in ("mask_token", "unk_token")}
    for name in ("bos", "eos", "pad", "cls", "sep"):
        settings.setdefault(f"{name}_token_id", None)
    model = getattr(transformers, architecture)(transformers.AutoConfig.for_model(model_type, **settings | changes))
    with torch.no_grad():
        for parameter in model.parameters():  # biases of 0 and scales of 1 would hide one that is not read
            parameter.add_(0.1 * torch.randn_like(parameter))
    if model_type in ("gpt2", "mistral", "qwen3"):  # how its texts were to be drawn, which is none of ours
        model.generation_config = transformers.GenerationConfig(do_sample=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "architecture",
    [
        *families.ENCODERS.values(),
        *families.CLASSIFIERS.values(),
        *families.TAGGERS.values(),
        *families.READERS_OF_SPANS.values(),
        "DistilBertForMaskedLM",
        "XLMRobertaForMaskedLM",
        "GPT2LMHeadModel",
    ],
)
def test_what_transformers_saves_becomes_a_run_and_a_folder_again(tmp_path, architecture):
    model = save(tmp_path / "theirs", architecture)
    verdict = import_run(tmp_path / "theirs", tmp_path / "run", text=(LONG,))
    assert verdict.is_full
    assert not verdict.failed
    output = "hidden states" if architecture in families.ENCODERS.values() else "logits"
    assert {"checkpoint", "parameters", "opens", "ids", output} <= {check.name for check in verdict.checks}
    run = LoadedRun.read(tmp_path / "run")
    assert not write_checked(run, tmp_path / "again").failed
    if output == "hidden states":
        texts = [*TEXTS, "", LONG, "日本"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
        for pooling in ("mean", "cls"):
            found = jax_speechlm.load(tmp_path / "run").embed(texts, pooling=pooling)
            for text, vector in zip(texts, found, strict=True):
                given = tokenizer(text, return_tensors="pt", truncation=True, max_length=run.experiment.data.context)
                given.pop("token_type_ids", None)
                with torch.no_grad():
                    hidden = model(**given).last_hidden_state[0].numpy()
                expected = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
                np.testing.assert_allclose(vector, expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["RobertaForMaskedLM", "GPT2LMHeadModel"])
def test_parameters_of_flax_are_those_that_transformers_has(tmp_path, architecture):
    save(tmp_path / "theirs", architecture)
    to_flax(tmp_path / "theirs")
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed


@pytest.mark.parametrize("sliding_window", [5, None])
def test_a_mistral_with_and_without_windows(tmp_path, sliding_window):
    save(tmp_path / "theirs", "MistralForCausalLM", sliding_window=sliding_window)
    assert not import_run(tmp_path / "theirs", tmp_path / "run", text=(LONG,)).failed
    assert LoadedRun.read(tmp_path / "run").experiment.model.window == (sliding_window and sliding_window - 1)
    assert not write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again").failed


@pytest.mark.parametrize("rope", [{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}])
def test_a_qwen3_with_scaled_positions_and_windows_in_its_last_layers(tmp_path, rope):
    settings = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1, "num_key_value_heads": 1}
    settings |= {"head_dim": 8, "rope_parameters": rope | {"rope_theta": 500.0}}
    save(tmp_path / "theirs", "Qwen3ForCausalLM", **settings)
    assert not import_run(tmp_path / "theirs", tmp_path / "run", text=(LONG,)).failed
    assert not write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again").failed


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_activations_of_berts(tmp_path, activation):
    save(tmp_path / "theirs", "BertForMaskedLM", hidden_act=activation)
    assert not import_run(tmp_path / "theirs", tmp_path / "run").failed


def test_a_modernbert_that_classifies_by_the_mean(tmp_path):
    save(tmp_path / "theirs", "ModernBertForSequenceClassification", classifier_pooling="mean", num_labels=4)
    assert not import_run(tmp_path / "theirs", tmp_path / "run").failed


def test_entities_are_those_of_the_pipeline(tmp_path):
    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    model = save(tmp_path / "theirs", "BertForTokenClassification", id2label=names)
    import_run(tmp_path / "theirs", tmp_path / "run")
    texts = [*TEXTS, "the cat sat on the mat"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    pipeline = transformers.pipeline("ner", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
    found = jax_speechlm.load(tmp_path / "run").tag(texts)
    assert sum(map(len, found)) > 3
    for text, entities in zip(texts, found, strict=True):
        expected = [(each["entity_group"], each["start"], each["end"]) for each in pipeline(text)]
        assert [(each.label, each.start, each.end) for each in entities] == expected
        shares = [float(each["score"]) for each in pipeline(text)]
        np.testing.assert_allclose([each.probability for each in entities], shares, atol=1e-4)


@pytest.mark.parametrize("architecture", ["BertForQuestionAnswering", "RobertaForQuestionAnswering"])
def test_answers_are_the_likeliest_spans(tmp_path, architecture):
    """Of BERT with token types, which tell the question and the text apart."""
    model = save(tmp_path / "theirs", architecture)
    import_run(tmp_path / "theirs", tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    for question, text in (("the cat", TEXTS[0]), ("a", TEXTS[1])):
        (answer,) = jax_speechlm.load(tmp_path / "run").answer(question, [text])
        given = tokenizer(question, text, return_tensors="pt", return_offsets_mapping=True)
        offsets = given.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            outputs = model(**given)
        inside = [place for place, part in enumerate(given.sequence_ids(0)) if part == 1]
        first, last = (scores[0, inside].softmax(0) for scores in (outputs.start_logits, outputs.end_logits))
        spans = {
            (i, j): float(first[i] * last[j]) for i in range(len(inside)) for j in range(i, min(i + 15, len(inside)))
        }
        (i, j), share = max(spans.items(), key=lambda item: item[1])
        assert (answer.start, answer.end) == (offsets[inside[i]][0], offsets[inside[j]][1])
        assert answer.text == text[answer.start : answer.end]
        np.testing.assert_allclose(answer.probability, share, rtol=1e-3)
