"""What Hugging Face's library makes of our tokenizers' files: texts and their ids, to test against without it.

Run by hand (`make golden`); needs transformers. Trains each kind of tokenizer on a few lines of its own.
"""

import base64
import json
import tempfile
from pathlib import Path

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.base import train_tokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.interop.hf.tokenizer_files import ctc_files, text_files

GOLDEN = Path(__file__).with_name("tokenizers.json")
CORPUS = (
    "when the sun came up over the hill the old miller went out to look at the wheel",
    "the wheel was turning, as it had turned all night; the water ran under it.",
    "he said: 'naïve façades' are 12 or 13 in a row, and \"no\" is no answer!",
    "where there is water there is a way, said the miller's daughter to the hen",
)
TEXTS = (
    "the miller's wheel",
    " two  spaces, and one behind ",
    "Über naïve façades: ﬁve ½ №1",
    "one line\n\nand another\n",
    "\n",
    "",
    "日本 unknown, ünknown",
    "the\u00a0water\twas a\u0301 way",
)
KINDS = {
    "char": {"kind": "char"},
    "unigram": {"kind": "unigram", "vocab_size": 80},
    "bpe": {"kind": "bpe", "vocab_size": 80},
    "unigram-bytes": {"kind": "unigram", "vocab_size": 340, "byte_fallback": True},
    "bpe-bytes": {"kind": "bpe", "vocab_size": 340, "byte_fallback": True},
}


def train(name: str, *, with_lines: bool) -> Tokenizer:
    texts = ["\n".join(CORPUS)] if with_lines else CORPUS
    return train_tokenizer(texts, **KINDS[name])


def main() -> None:
    import transformers

    cases = []
    for name in KINDS:
        for with_lines in (False, True):
            tokenizer = train(name, with_lines=with_lines)
            vocabulary = Vocabulary.of(tokenizer, num_units=2)
            files = text_files(tokenizer, vocabulary, 64, causal=True)
            with tempfile.TemporaryDirectory() as folder:
                for file, value in files.items():
                    (Path(folder) / file).write_text(json.dumps(value))
                loaded = transformers.AutoTokenizer.from_pretrained(folder)
            ids = [loaded(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save(folder)
                saved = {file.name: base64.b64encode(file.read_bytes()).decode() for file in Path(folder).iterdir()}
            case = {"name": name, "with_lines": with_lines, "saved": saved, "files": files, "ctc": ctc_files(tokenizer)}
            back = [loaded.decode(row, skip_special_tokens=True) for row in ids]
            cases.append(case | {"ids": ids, "decoded": back})
    GOLDEN.write_text(json.dumps({"texts": TEXTS, "cases": cases}, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
