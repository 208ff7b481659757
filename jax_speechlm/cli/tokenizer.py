"""`jax-speechlm train-tokenizer`."""

from pathlib import Path
from typing import Literal

from data_pipelines.storage import index
from data_pipelines.tokenizers import base


def train_tokenizer(
    sets: tuple[str, ...],
    out: Path,
    kind: Literal["char", "word", "phones", "ipa", "unigram", "bpe"] = "unigram",
    vocab_size: int = 500,
    byte_fallback: bool = False,
    language: str = "en-us",
    min_count: int = 5,
    max_characters: int = 20_000_000,
    data_dir: Path = Path("data"),
) -> None:
    """Trains a tokenizer on the transcripts or documents of prepared training splits.

    Args:
      sets: names of prepared data sets; "name:split" selects another split than "train".
      out: folder to write; give it to training as --data.tokenizer.
      kind: characters; words, for word vectors; English phones by the CMU Pronouncing Dictionary, for speech synthesis
        (pip install 'jax_speechlm[tts]'); ipa: phones of any language by eSpeak NG (pip install
        'jax_speechlm[espeak]'); or SentencePiece by a unigram model or byte-pair encoding.
      vocab_size: number of tokens including the CTC blank; ignored for characters, words and phones.
      byte_fallback: encode characters without a piece as bytes, so that decoding is lossless; for language models.
      language: eSpeak's name of the language of ipa, such as fr-fr.
      min_count: a word needs as many occurrences.
      max_characters: characters of the rows drawn at random that SentencePiece is trained on.
      data_dir: folder of the prepared data sets.
    """
    rows = index.read_sets(data_dir, sets, "train")
    if kind in base.COUNTED:
        texts = [text for part in rows.parts for text in part.written()]
        tokenizer = base.train_tokenizer(texts, kind, None, out, language=language, min_count=min_count)
    else:
        texts = index.sample_texts(rows, max_characters)
        texts += [target for part in rows.parts if part.has_targets for target in part.texts("target") if target]
        tokenizer = base.train_tokenizer(texts, kind, vocab_size, out, byte_fallback=byte_fallback)
    print(f"{out}: {tokenizer.kind} tokenizer with {tokenizer.vocab_size} ids from {len(texts)} of {len(rows)} texts")
