"""The command `jax-speechlm train-ngram`."""

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

    The kenlm package reads these files. It does not include the tools for binary files, so a large model is either
    pruned or converted with KenLM's `build_binary`; `--lm` reads both.

    Args:
      out: file to write, compressed if its name ends in .gz.
      sets: prepared sets of text or speech, whose "train" splits are read; "name:split" takes another split.
      text: plain text files in UTF-8, one sentence a line.
      order: n, from 2 to 6.
      unit: words, or characters including the space.
      tokenizer: folder of a tokenizer, to use its pieces as units instead.
      prune: counts by order up to which n-grams are dropped; the first is 0, the last applies to all longer ones.
        `0 0 1` drops n-grams of three and more words that occur once.
      data_dir: folder of the prepared data sets.
    """
    if not sets and not text:
        raise DataError("no text is given: name prepared sets with --sets, or files with --text")
    pieces = base.load_tokenizer(tokenizer) if tokenizer else None

    def units() -> Iterator[list[str]]:
        for document in _documents(sets, text, data_dir):
            if pieces is None:
                yield from sentences(document, unit)
            else:
                lines = (pieces.encode(line) for line in document.splitlines())
                yield from ([pieces.pieces[token] for token in line] for line in lines if line)

    model = estimate(units(), order, prune)
    write_arpa(model, out)
    counts = ", ".join(f"{len(grams.word):,}" for grams in model.orders)
    print(f"{out}: n-grams of 1 to {order} units: {counts}")
    if model.fallbacks:
        orders = ", ".join(f"{n}-grams" for n in model.fallbacks)
        print(f"using fallback Kneser-Ney discounts for {orders} (normal for character models)")
    NGram(out)  # check that it can be read


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
