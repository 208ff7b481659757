"""Folders that transformers itself wrote, as runs: what `import` promises, on tiny random models."""

import json

import numpy as np
import pytest
import tokenizers

from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.interop.folders import FailedCheck
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.objectives.speech_text.speech_lm import Prompt
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import TEXTS, byte_level, enclose

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "initializer_range": 0.3, "max_position_embeddings": 96,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 6, "right_max_position_embeddings": 3,
    "feature_projection_input_dim": 40, "initializer_range": 0.5,
}  # fmt: skip
BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
VOCAB = {"|": 0, "a": 1, "b": 2, "ö": 3, "'": 4, "[UNK]": 5, "[PAD]": 6}


def write(folder, kind, **changes):
    """What the recipes of transformers end with: a model and its tokenizer, saved.

    Args:
      changes: settings of the model that are not as usual here.
    """
    torch.manual_seed(0)
    if kind == "ctc":
        return write_recognizer(folder, **changes)
    special = {
        "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        "voxtral": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        "qwen3": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "qwen2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "modernbert": BERT,
        "text classes": BERT,
        "bert": BERT | {"unk_token": "[UNK]"},
        "roberta": {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
        | {"pad_token": "<pad>", "mask_token": "<mask>"},
    }[kind]
    made = word_pieces(TEXTS, special) if kind == "bert" else byte_level(*dict.fromkeys(special.values()))
    if kind == "qwen2":  # its class splits texts in its own way, whatever the file says
        own = transformers.Qwen2Tokenizer().backend_tokenizer
        made.pre_tokenizer, made.normalizer = own.pre_tokenizer, own.normalizer
    if kind not in ("qwen3", "qwen2"):
        names = [special.get(f"{name}_token") for name in ("cls", "bos", "sep")]
        enclose(made, names[0] or names[1], names[2])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    ids = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in special.items() if "mask" not in name
    }
    for name in ("bos", "eos", "pad", "cls", "sep"):
        ids.setdefault(f"{name}_token_id", None)
    common = SMALL | ids | {"vocab_size": len(tokenizer) + 3}
    model = {
        "voxtral": lambda: write_listener(folder, tokenizer, common),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, num_key_value_heads=1)),
        "qwen3": lambda: transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                **common, **{"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True} | changes
            )
        ),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**common, num_key_value_heads=1, tie_word_embeddings=True)
        ),
        "modernbert": lambda: transformers.ModernBertForMaskedLM(
            transformers.ModernBertConfig(**common, local_attention=8, initializer_cutoff_factor=3.0)
        ),
        "text classes": lambda: transformers.ModernBertForSequenceClassification(
            transformers.ModernBertConfig(
                **common, classifier_pooling="mean", initializer_cutoff_factor=3.0, id2label={0: "no", 1: "yes"}
            )
        ),
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**common)),
        "roberta": lambda: transformers.RobertaForMaskedLM(  # whose positions begin behind its padding's id
            transformers.RobertaConfig(**common | {"max_position_embeddings": len(tokenizer) + 96})
        ),
    }[kind]()
    if kind in ("voxtral", "llama", "qwen3", "qwen2"):  # how its texts were to be drawn, which is none of ours
        model.generation_config = transformers.GenerationConfig(do_sample=True, repetition_penalty=1.3)
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save_pretrained(folder)


def write_listener(folder, tokenizer, common):
    """A speech-language model with a named token for speech and two ids that end a text; its model, to be saved."""
    tokenizer.add_tokens(["<|AUDIO|>"], special_tokens=True)
    eos, speech = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|AUDIO|>"])
    text = common | {"model_type": "llama", "num_key_value_heads": 1, "eos_token_id": [7, eos]}
    tower = TOWER | {"model_type": "wav2vec2-bert"}
    config = transformers.VoxtralConfig(
        audio_config=tower, text_config=text, audio_token_id=speech, projector_hidden_act="relu"
    )
    transformers.SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20).save_pretrained(folder)
    (folder / "speech_prompt.json").write_text('{"task": "translate", "before": "go", "behind": " so"}')
    return transformers.VoxtralForConditionalGeneration(config)


def word_pieces(texts, special):
    """Pieces of lower-case words, as BERT has, with special tokens before."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=special["unk_token"]))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=60, special_tokens=sorted(special.values()))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.mark.parametrize("names", [("of 0", "of 1", "of 2"), ("LABEL_0", "LABEL_1")], ids=["three", "unnamed"])
@pytest.mark.parametrize("kind", ["AudioFrameClassification", "XVector"])
def test_heads_of_frames_and_of_speakers_are_taken_as_they_are(tmp_path, kind, names):
    """With transformers' own layers over time, dilated ones; names that are its defaults it does not write."""
    torch.manual_seed(0)
    form = {"tdnn_dim": (8, 8, 8, 8, 12), "xvector_output_dim": 6, "id2label": dict(enumerate(names))}
    config = transformers.Wav2Vec2BertConfig(**TOWER, **form)
    getattr(transformers, f"Wav2Vec2BertFor{kind}")(config).save_pretrained(tmp_path / "theirs")
    transformers.SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20).save_pretrained(tmp_path / "theirs")
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed
    assert {"checkpoint", "parameters", "opens", "vectors" if kind == "XVector" else "classes"} <= {
        check.name for check in verdict.checks
    }
    again = LoadedRun.read(tmp_path / "run")
    assert again.experiment.objective.classes == names
    assert not write_checked(again, tmp_path / "again").failed


def write_recognizer(folder, **changes):
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(VOCAB))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|"
    )
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)
    ids = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    config = transformers.Wav2Vec2BertConfig(**TOWER | changes, **ids)
    transformers.Wav2Vec2BertForCTC(config).save_pretrained(folder)
    transformers.Wav2Vec2BertProcessor(extractor, tokenizer).save_pretrained(folder)


@pytest.mark.parametrize(
    "kind", ["ctc", "llama", "qwen3", "qwen2", "modernbert", "bert", "roberta", "text classes", "voxtral"]
)
def test_what_transformers_saves_becomes_a_run_and_a_folder_again(tmp_path, kind):
    write(tmp_path / "theirs", kind)
    verdict = import_run(tmp_path / "theirs", tmp_path / "run", text=("the cat sat",))
    assert verdict.is_full
    assert not verdict.failed
    names = {check.name for check in verdict.checks}
    assert {"checkpoint", "parameters", "opens", "ids", "logits"} <= names
    assert ("front end" in names and "greedy text" in names) if kind == "ctc" else True
    assert ("answer" in names) == (kind == "voxtral")
    assert ("continuation" in names) == (kind in ("llama", "qwen3", "qwen2"))
    again = LoadedRun.read(tmp_path / "run")
    assert not write_checked(again, tmp_path / "again").failed
    if kind == "voxtral":
        assert again.experiment.objective.task == "translate"
        assert again.experiment.objective.prompts.translate == Prompt(before="go", behind=" so")


@pytest.mark.parametrize("kind", ["ctc", "llama"])
def test_the_check_sees_ids_that_are_off_by_one(tmp_path, monkeypatch, kind):
    """Were a wrong row read, the way back would hide it: it is transformers that sees it."""
    from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer

    write(tmp_path / "theirs", kind)
    encode = HuggingFaceTokenizer.encode_batch
    monkeypatch.setattr(
        HuggingFaceTokenizer,
        "encode_batch",
        lambda self, texts, num_threads=1: [[max(1, n - 1) for n in row] for row in encode(self, texts)],
    )
    with pytest.raises(FailedCheck, match="ids: "):
        import_run(tmp_path / "theirs", tmp_path / "run")


def change(folder, file, **changes):
    values = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(values | changes))


def test_prefix_several_eos_and_truncation_are_as_transformers_has_them(tmp_path):
    """A bos in config.json that the tokenizer does not add, two ids that end a text, texts cut at five tokens."""
    folder, text = tmp_path / "theirs", "the cat sat on the mat, naïvely, " * 3
    write(folder, "qwen3")
    (end,) = {json.loads((folder / "config.json").read_text())["eos_token_id"]}
    description = json.loads((folder / "tokenizer.json").read_text())
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    change(folder, "tokenizer.json", truncation=cut)
    change(folder, "config.json", bos_token_id=end)
    stop = description["model"]["vocab"]["a"]
    change(folder, "generation_config.json", eos_token_id=[end, stop], do_sample=False, repetition_penalty=1.0)
    verdict = import_run(folder, tmp_path / "run", text=(text,))
    assert not verdict.failed
    lm = LanguageModel.load(tmp_path / "run")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    places = lm.tokenizer.places
    never = places.theirs[~lm.vocabulary.may_follow()[: len(places.theirs)]]  # rows that no token names
    options = {"max_new_tokens": 12, "suppress_tokens": never[never >= 0].tolist()}
    for prompt in (text, "the", "a cat", "in the beginning"):
        given = tokenizer(prompt, return_tensors="pt")
        assert places.theirs[lm.prompt(prompt)].tolist() == given["input_ids"][0].tolist()
        found = model.generate(**given, **options)[0, given["input_ids"].shape[1] :].tolist()
        ((ids,), (length,), _) = lm.continue_ids([lm.prompt(prompt)], GREEDY, max_tokens=12)[0]
        assert places.theirs[ids[:length]].tolist() == found
    given = tokenizer(text, return_tensors="pt")
    logits = model(**given).logits[0, :-1].detach()
    extra = torch.zeros(len(logits), lm.vocabulary.size - places.num_rows)  # rows that our table is filled up with
    picked = logits.gather(1, given["input_ids"][0, 1:, None])[:, 0]
    expected = torch.logsumexp(torch.cat([logits, extra], 1), 1) - picked
    (nats,) = lm.token_nll([lm.prompt(text)])
    np.testing.assert_allclose(nats, expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize("adds", [True, False])
def test_prefix_that_only_one_side_has_fails_the_check(tmp_path, monkeypatch, adds):
    from jax_speechlm.interop.hf import foreign_tokenizers

    write(tmp_path / "theirs", "qwen3" if adds else "llama")
    if not adds:
        monkeypatch.setattr(foreign_tokenizers, "ids_around", lambda tokenizer: ([], []))
    else:
        monkeypatch.setattr(foreign_tokenizers, "ids_around", lambda tokenizer: ([270], []))
    with pytest.raises(FailedCheck, match=r"ids: .* with what the tokenizer adds around it"):
        import_run(tmp_path / "theirs", tmp_path / "run")


def test_a_rust_panic_fails_the_check(tmp_path):
    """On the one text, named by hand, that the tokenizer cannot read."""
    write(tmp_path / "theirs", "llama")
    stuck = {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"}
    change(tmp_path / "theirs", "tokenizer.json", normalizer=stuck)
    with pytest.raises(FailedCheck, match=r"ids: DataError: .*cannot read 'a{40}b'"):
        import_run(tmp_path / "theirs", tmp_path / "run", text=("a" * 40 + "b",))


def test_bfloat16_is_compared_with_what_is_rounded_alike(tmp_path):
    write(tmp_path / "theirs", "qwen3")
    assert not import_run(tmp_path / "theirs", tmp_path / "run", dtype="bfloat16").failed
    assert not write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again").failed
    assert np.asarray(LoadedRun.read(tmp_path / "run").params["transformer"]["embedding"]).dtype.name == "bfloat16"
