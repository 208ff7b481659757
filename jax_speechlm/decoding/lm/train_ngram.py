"""What `jax-speechlm train-ngram` runs."""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.core.errors import DataError
from data_pipelines.storage import index
from data_pipelines.tokenizers import base
from jax_speechlm.decoding.lm.kneser_ney import estimate, write_arpa
from jax_speechlm.decoding.lm.ngram import NGram, Unit, sentences


def train_ngram(
    out: Path,
    sets: tuple[str, ...] = (),
    text: tuple[Path, ...] = (),
    order: int = 4,
    unit: Unit = "word",
    tokenizer: Path | None = None,
    prune: tuple[int, ...] = (),
    data_dir: Path = Path("data"),
) -> None:
    """Estimates an n-gram model by interpolated modified Kneser-Ney and writes it as an ARPA file.

    The kenlm package reads such files; its tools for making binary ones are not part of it, so a large model is either
    pruned or turned into a binary with KenLM's own `build_binary`, which `--lm` reads as well.

    Args:
      out: the file to write; a name that ends in .gz is compressed.
      sets: prepared sets of text or speech, whose "train" splits are read; "name:split" takes another split.
      text: plain text files in UTF-8; a line is a sentence.
      order: n, from 2 to 6.
      unit: words, or characters with a space among them.
      tokenizer: folder of a tokenizer whose pieces are the units instead.
      prune: n-grams that occur so rarely are left out: thresholds by order, the first 0 and the last for all longer
        ones. `0 0 1` drops n-grams of three and more words that occur once.
      data_dir: folder of the prepared data sets.
    """
    if not sets and not text:
        raise DataError("there is no text to learn from: name prepared sets with --sets, or files with --text")
    pieces = base.load_tokenizer(tokenizer) if tokenizer else None

    def units() -> Iterator[list[str]]:
        for document in _documents(sets, text, data_dir):
            if pieces is None:
                yield from sentences(document, unit)
            else:
                lines = (pieces.encode(line) for line in document.splitlines())
                yield from ([pieces.pieces[number] for number in line] for line in lines if line)

    model = estimate(units(), order, prune)
    write_arpa(model, out)
    counts = ", ".join(f"{len(grams.word):,}" for grams in model.orders)
    print(f"{out}: n-grams of 1 to {order} units: {counts}")
    if model.fallbacks:
        print(f"orders {model.fallbacks} are too regular to estimate discounts: they got {model.discounts[0]}")
    NGram(out)  # it can be read


def _documents(sets: tuple[str, ...], files: tuple[Path, ...], data_dir: Path) -> Iterator[str]:
    if sets:
        for chunk in index.read_sets(data_dir, sets, "train").column("text").chunks:
            yield from chunk.to_pylist()
    for file in files:
        try:
            yield file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(f"{file} does not exist: correct the path given to --text") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from error
