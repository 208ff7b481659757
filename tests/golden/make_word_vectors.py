"""Makes word_vectors.npz: gensim's word2vec on some sentences, one after the other.

    python tests/golden/make_word_vectors.py        (needs gensim; see the [parity] extra)

For skip-gram and CBOW: both tables before and after SGD on each sentence, and the negatives that its program drew,
computed by the same generator. And the distributions of negatives and of subsampling.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

DIM, WINDOW, NEGATIVES, RATE, SUBSAMPLE = 8, 2, 3, 0.005, 0.02
NUM_WORDS = 12


def sentences() -> list[list[str]]:
    """Some sentences over `NUM_WORDS` words, of which the first are the most frequent."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, NUM_WORDS + 1)
    drawn = rng.choice(NUM_WORDS, 60, p=shares / shares.sum())
    ids = np.concatenate([np.arange(NUM_WORDS), drawn])
    return [[f"w{id_}" for id_ in part] for part in np.split(ids, np.cumsum([5, 1, 4, 2, 4, 3] * 4)[:-2])]


def gensim_word2vec(skip_gram: bool) -> dict[str, np.ndarray]:
    """Trains one epoch; returns tables, examples in their order, and distributions.

    `words` and `outputs` float32 [sentences + 1, words, DIM] before each sentence and after the last; `sentences` int
    [examples], the sentence of each; `centres` int [examples], `contexts` int [examples, 2 * WINDOW], -1 where there
    is none (skip-gram has one word each), `negatives` int [examples, NEGATIVES]; words by the rank of their frequency.
    """
    from gensim.models import Word2Vec

    settings = {"vector_size": DIM, "window": WINDOW, "negative": NEGATIVES, "min_count": 1, "sg": int(skip_gram)}
    settings |= {"alpha": RATE, "min_alpha": RATE, "workers": 1, "shrink_windows": False, "seed": 3}
    model = Word2Vec(sample=0, **settings)
    model.build_vocab(sentences())
    rng = np.random.default_rng(1)
    for table in (model.wv.vectors, model.syn1neg):
        table[:] = rng.normal(0, 0.5, table.shape)
    replay = np.random.RandomState()
    replay.set_state(model.random.get_state())
    words, outputs = [model.wv.vectors.copy()], [model.syn1neg.copy()]
    examples = []
    for number, text in enumerate(sentences()):
        model.train([text], total_examples=1, epochs=1)
        words.append(model.wv.vectors.copy())
        outputs.append(model.syn1neg.copy())
        ids = [model.wv.key_to_index[word] for word in text]
        examples += [(number, *example) for example in _examples(ids, model.cum_table, replay, skip_gram)]
    counted = Word2Vec(sample=SUBSAMPLE, **settings)
    counted.build_vocab(sentences())
    attributes = {name: [counted.wv.get_vecattr(word, name) for word in counted.wv.index_to_key] for name in _COUNTED}
    return {
        "words": np.stack(words),
        "outputs": np.stack(outputs),
        "cumulative": model.cum_table,
        **{name: np.array(values) for name, values in attributes.items()},
        **{name: np.array(values) for name, values in zip(_EXAMPLE, zip(*examples, strict=True), strict=True)},
    }


_COUNTED = "count", "sample_int"
_EXAMPLE = "sentences", "centres", "contexts", "negatives"


def _examples(
    text: list[int], cumulative: np.ndarray, replay: np.random.RandomState, skip_gram: bool
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Yields the examples of a sentence, with the negatives by the program's linear congruential generator."""
    state = 2**24 * int(replay.randint(0, 2**24)) + int(replay.randint(0, 2**24))
    for place, word in enumerate(text):
        near = range(max(0, place - WINDOW), min(len(text), place + WINDOW + 1))
        context = [text[other] for other in near if other != place]
        for group in [[each] for each in context] if skip_gram else [context]:
            negatives = []
            for _ in range(NEGATIVES):
                negatives.append(int(np.searchsorted(cumulative, (state >> 16) % int(cumulative[-1]))))
                state = (state * 25214903917 + 11) % 2**48
            yield word, group + [-1] * (2 * WINDOW - len(group)), negatives


def golden() -> dict[str, np.ndarray]:
    """Returns the arrays of both, named "skip_gram_words" and so on."""
    both = {name: gensim_word2vec(name == "skip_gram") for name in ("skip_gram", "cbow")}
    return {f"{name}_{array}": value for name, arrays in both.items() for array, value in arrays.items()}


def main() -> None:
    np.savez_compressed(Path(__file__).with_name("word_vectors.npz"), **golden())


if __name__ == "__main__":
    main()
