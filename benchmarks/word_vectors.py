"""gensim's word2vec on a prepared set of text, with the words and settings of `text_en/skip_gram` and `text_en/cbow`.

    pip install 'jax_speechlm[parity]'
    python benchmarks/word_vectors.py --data-dir data --tokenizer data/words-text-en

The files of rated pairs and analogies are those in gensim's own package.
"""

import argparse
import time
from pathlib import Path

from data_pipelines.storage.index import read_sets
from data_pipelines.tokenizers.base import load_tokenizer
from data_pipelines.tokenizers.words import split_words
from jax_speechlm.evaluation.word_vectors import measure_file
from jax_speechlm.inference.word_vectors import WordTable

FILES = ("wordsim353.tsv", "simlex999.txt", "questions-words.txt")


def main() -> None:
    import gensim

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--sets", nargs="+", default=["text-en"])
    parser.add_argument("--tokenizer", type=Path, default=Path("data/words-text-en"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    words = set(load_tokenizer(options.tokenizer).words)
    index = read_sets(options.data_dir, tuple(options.sets), "train")
    texts = [[word for word in split_words(text) if word in words] for part in index.parts for text in part.texts()]
    folder = Path(gensim.__file__).parent / "test" / "test_data"
    for name, skip_gram in (("skip_gram", 1), ("cbow", 0)):
        began, cpu = time.perf_counter(), time.process_time()
        shared = {"vector_size": 100, "window": 5, "negative": 5, "min_count": 1, "seed": 0}
        model = gensim.models.Word2Vec(texts, sg=skip_gram, epochs=options.epochs, workers=options.workers, **shared)
        seconds = f"{time.perf_counter() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU time"
        table = WordTable(tuple(model.wv.index_to_key), model.wv.vectors, f"gensim {name}")
        measures = (measure_file(table, folder / file) for file in FILES)
        print(f"{name}: {seconds}; " + ", ".join(f"{each.file} {each.value:.3f}" for each in measures), flush=True)


if __name__ == "__main__":
    main()
