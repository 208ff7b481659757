"""Folders as others write them: special ids anywhere, byte-level tokenizers, several files of weights."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf import text_heads, transformer, wav2vec2, wav2vec2_bert, whisper
from jax_speechlm.interop.hf.feature_extractor import FILE as FRONT_END
from jax_speechlm.interop.hf.feature_extractor import front_end_to_hugging_face
from jax_speechlm.interop.hf.speech_heads import HEADED, Head
from jax_speechlm.interop.hf.weights import write_weights
from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.conformer import Conformer
from jax_speechlm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.models.transformer_config import LearnedPositions, TransformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.asr.whisper_tokens import TIMESTAMPS
from jax_speechlm.objectives.encoder_only import EncoderOnly
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2
from tests.interop.tiny_runs import BERT, FORMER, OLD_BERT, QWEN, SPEECH_FRONT_END, XVECTOR

TEXTS = ["in the beginning was the word", "the cat sat on the mat, naïvely", "\n  two  lines\n"]
LLAMA = QWEN.replace(query_key_norm=False, tied=False)
QWEN2 = QWEN.replace(query_key_norm=False, qkv_bias=True)
UNUSED = 5  # rows of the table that no token names


BERT_SPECIAL = {"bos": "[CLS]", "cls": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
SPECIAL = {
    "llama": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
    "qwen3": {"eos": "<|endoftext|>", "pad": "<|endoftext|>"},
    "qwen2": {"eos": "<|endoftext|>", "pad": "<|endoftext|>"},
    "gpt2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    **dict.fromkeys(("modernbert", "bert", "roberta", "xlm-roberta", "distilbert"), BERT_SPECIAL),
}
"""Special tokens of each kind of language model."""

TABLES = {
    "modernbert": "model.embeddings.tok_embeddings.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
    **dict.fromkeys(("roberta", "xlm-roberta"), "roberta.embeddings.word_embeddings.weight"),
    "distilbert": "distilbert.embeddings.word_embeddings.weight",
}
"""Name of the table of embeddings, where it is not that of a causal model."""

# The blank is last and there are special tokens that no text has, as in the usual recipes.
VOCAB = {"|": 0, "a": 1, "b": 2, "ö": 3, "'": 4, "[UNK]": 5, "[PAD]": 6, "<s>": 7, "</s>": 8}
CONTRAST = Wav2Vec2(groups=2, codes=6, code_dim=8, negatives=7, mask_ratio=0.4, mask_span=0.2)
CTC_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "bos": "<s>", "eos": "</s>"}


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def change_json(folder: Path, name: str, **changes: Any) -> None:
    """Changes settings of a JSON file."""
    write_json(folder, name, load(folder, name) | changes)


def write_json(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def draw(make, seed: int = 0):
    """Random parameters of a module."""
    rng = np.random.default_rng(seed)
    shapes = functional.declare(make).shapes
    return jax.tree.map_with_path(
        lambda path, leaf: rng.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32), shapes
    )


def byte_level(*special: str) -> tokenizers.Tokenizer:
    """Byte-level byte pairs as Llama 3, Qwen and ModernBERT have, with special tokens behind."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def enclose(tokenizer: tokenizers.Tokenizer, before: str | None, behind: str | None = None) -> None:
    """Makes a tokenizer put special tokens around a text."""
    around = [token for token in (before, behind) if token]
    template = " ".join(part for part in (before, "$A", behind) if part)
    special = [(token, tokenizer.token_to_id(token)) for token in around]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)


GPT2 = TransformerConfig.gpt2(
    dim=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=24, positions=LearnedPositions(size=64)
)
LABELS = {"0": "no", "1": "yes"}


def write_text_model(
    folder: Path, kind: str, *, encloses: bool = True, architecture: str | None = None, **special: str
) -> dict[str, np.ndarray]:
    """A language model, or a text encoder alone or with a head.

    Args:
      kind: its `model_type`.
      encloses: whether the tokenizer puts `bos`, or `cls` and `sep`, around a text.
      architecture: its class; None for the language model's.
      special: names of special tokens, by what they are: eos="</s>".

    Returns:
      Its state dict.
    """
    named = {"llama": LLAMA, "qwen3": QWEN, "qwen2": QWEN2, "modernbert": BERT, "gpt2": GPT2}
    config, architecture = named.get(kind, OLD_BERT), architecture or families.LANGUAGE_MODELS[kind]
    tokenizer = byte_level(*dict.fromkeys(special.values()))
    if encloses and kind != "gpt2":
        enclose(tokenizer, special.get("cls", special.get("bos")), special.get("sep"))
    num_rows = tokenizer.get_vocab_size() + UNUSED
    if kind in ("roberta", "xlm-roberta"):  # its positions begin behind the id of its padding
        first = tokenizer.token_to_id(special["pad"]) + 1
        config = config.replace(positions=LearnedPositions(size=first + 64, first=first, token_types=1))
    if kind == "distilbert":
        config = config.replace(positions=LearnedPositions(size=64), norm_epsilon=1e-12)
    is_language_model, is_bare = architecture in families.LANGUAGE_MODELS.values(), architecture.endswith("Model")
    is_bare = is_bare and not is_language_model
    if not is_language_model and (is_bare or kind != "modernbert"):
        config = config.replace(head="linear", tied=True)
    params = {"transformer": draw(lambda rngs: Transformer(config, num_rows, rngs=rngs))}
    if is_language_model:
        arrays = transformer.to_hugging_face(params["transformer"], config)
    else:
        rng = np.random.default_rng(2)
        sizes = {"pooler": config.dim, "head": len(LABELS)}
        for name, size in sizes.items():
            params[name] = {"kernel": rng.normal(size=(config.dim, size)), "bias": rng.normal(size=size)}
        params |= jax.tree.map(lambda x: x.astype(np.float32), {name: params[name] for name in sizes})
        if is_bare:
            has_pooler = "oberta" in kind or kind == "bert"
            arrays = text_heads.bare_arrays(params if has_pooler else {"transformer": params["transformer"]}, config)
        else:
            arrays = text_heads.head_arrays(params, config, architecture)
    values = {} if config.positions else {"max_position_embeddings": 64}
    values |= transformer.config_to_hugging_face(config, num_rows)
    values |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    ids = {name: tokenizer.token_to_id(token) for name, token in special.items()}
    values |= {f"{name}_token_id": number for name, number in ids.items() if name != "mask"}
    values |= {"model_type": kind, "architectures": [architecture]}
    if not is_language_model and not is_bare:
        values["id2label"] = LABELS
    folder.mkdir()
    write_weights(folder, arrays, shard_bytes=20_000)
    write_json(folder, "config.json", values)
    write_json(folder, "tokenizer_config.json", {f"{name}_token": token for name, token in special.items()})
    tokenizer.save(str(folder / "tokenizer.json"))
    return arrays


LANGUAGES = "en", "de"
ALIGNMENT_HEADS = [[1, 3], [0, 2], [1, 0]]


def write_whisper(folder: Path, *, multilingual: bool = True) -> dict[str, np.ndarray]:
    """A Whisper with windows of one second, whose files name no times; returns its state dict."""
    names = ["endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev"]
    tokenizer = byte_level(*(f"<|{name}|>" for name in [*names, "nospeech", "notimestamps"]))
    num_rows = tokenizer.get_vocab_size() + TIMESTAMPS
    encoder = WhisperEncoderConfig(
        input_dim=16, dim=16, num_layers=2, num_heads=2, ffn_dim=24, max_frames=50, attention="auto"
    )
    decoder = AttentionDecoderConfig(dim=16, num_layers=2, num_heads=4, ffn_dim=40, max_tokens=40)
    config = EncoderDecoderConfig(encoder=encoder, decoder=decoder)
    arrays = whisper.to_hugging_face(draw(lambda rngs: EncoderDecoder(config, num_rows, rngs=rngs)), config)
    end, start = (tokenizer.token_to_id(f"<|{name}|>") for name in names[:2])
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end) | {"decoder_start_token_id": start}
    suppressed = {"suppress_tokens": [1, 2, start], "begin_suppress_tokens": [tokenizer.encode(" ").ids[0], end]}
    folder.mkdir()
    write_weights(folder, arrays)
    write_json(folder, "config.json", whisper.config_to_hugging_face(config, num_rows) | special)
    write_json(folder, FRONT_END, whisper.features_to_hugging_face(WhisperMel(num_mel_bins=16, window_seconds=1)))
    generation = special | suppressed | {"is_multilingual": multilingual, "alignment_heads": ALIGNMENT_HEADS}
    write_json(folder, "generation_config.json", generation)
    token = "<|endoftext|>"
    names = {f"{name}_token": token for name in ("bos", "eos", "pad", "unk")}
    write_json(folder, "tokenizer_config.json", names | {"tokenizer_class": "WhisperTokenizer"})
    tokenizer.save(str(folder / "tokenizer.json"))
    return arrays


def write_sample_encoder(
    folder: Path, config: Wav2Vec2EncoderConfig, head: Head, *, is_weighted: bool = False
) -> dict[str, np.ndarray]:
    """An encoder of samples with old names of its weight norm, and a recognizer's tokenizer; returns its state dict."""
    classes = {"classes": ("no", "yes", "maybe"), "weighted_layers": is_weighted}
    objective = {
        "Model": EncoderOnly(),
        "ForPreTraining": CONTRAST,
        "ForCTC": CTC(),
        "ForSequenceClassification": Classification(**classes),
        "ForXVector": SpeakerVerification(**classes, head=XVECTOR),
    }[head]
    built = objective.build(config, FrontEnd(mel=Waveform()), CharTokenizer("abcdefgh"))  # of as many ids as `VOCAB`
    arrays = wav2vec2.to_hugging_face(draw(built.make), config, head)
    old, today = {new: name for name, new in wav2vec2.OLD_NAMES.items()}, re.compile(r"parametrizations.weight.*$")
    arrays = {today.sub(lambda part: old[part.group()], name): array for name, array in arrays.items()}
    folder.mkdir()
    write_weights(folder, arrays)
    if head in HEADED:
        values = wav2vec2.headed_config_to_hugging_face(config, head, objective)
    elif head == "ForPreTraining":
        values = wav2vec2.pretraining_config_to_hugging_face(config, CONTRAST)
    else:
        values = wav2vec2.config_to_hugging_face(config, len(VOCAB) if head == "ForCTC" else None)
    write_json(folder, FRONT_END, wav2vec2.features_to_hugging_face(Waveform(), config))
    if head == "ForCTC":
        values |= {f"{name}_token_id": VOCAB[token] for name, token in CTC_SPECIAL.items() if name != "unk"}
        write_json(folder, "vocab.json", VOCAB)
        tokens = {f"{name}_token": token for name, token in CTC_SPECIAL.items()}
        write_json(folder, "tokenizer_config.json", tokens | {"tokenizer_class": "Wav2Vec2CTCTokenizer"})
    write_json(folder, "config.json", values)
    return arrays


def write_recognizer(folder: Path, vocab: dict[str, int], **special: str) -> dict[str, np.ndarray]:
    """A Wav2Vec2-BERT with a CTC head over `vocab`."""
    former = FORMER.replace(input_dim=SPEECH_FRONT_END.mel.input_dim)
    encoder = draw(lambda rngs: Conformer(former, rngs=rngs))
    rng = np.random.default_rng(1)
    head = {"kernel": rng.normal(size=(former.dim, len(vocab))), "bias": rng.normal(size=len(vocab))}
    head = {name: value.astype(np.float32) for name, value in head.items()}
    arrays = wav2vec2_bert.to_hugging_face({"encoder": encoder, "head": head}, former)
    values = wav2vec2_bert.config_to_hugging_face(former, len(vocab))
    values |= {f"{name}_token_id": vocab[token] for name, token in special.items() if name != "unk"}
    folder.mkdir()
    write_weights(folder, arrays)
    write_json(folder, "config.json", values)
    write_json(folder, FRONT_END, front_end_to_hugging_face(SPEECH_FRONT_END.mel))
    write_json(folder, "vocab.json", vocab)
    tokens = {f"{name}_token": token for name, token in special.items()}
    tokens |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|"}
    write_json(folder, "tokenizer_config.json", tokens)
    return arrays
