"""Word vectors in the text format of word2vec: "words dim" in the first line, then a word and its numbers in each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.core.errors import DataError
from data_pipelines.core.files import replacing


def write_word2vec(path: Path | str, words: Sequence[str], vectors: np.ndarray) -> None:
    """Writes words, which contain no space, with vectors, float32 [words, dim], that are read back bit by bit."""
    if bad := next((word for word in words if not word or len(word.split()) != 1), None):
        raise ValueError(f"the word2vec format has no place for the word {bad!r}: it separates words by spaces")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        print(*vectors.shape, file=file)
        for word, vector in zip(words, vectors.astype(np.float32), strict=True):
            print(word, *map(str, vector), file=file)  # the shortest digits that give the same float32


def read_word2vec(path: Path | str) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads words and their vectors, float32 [words, dim].

    Raises:
      DataError: the file is not of this format; the message names the line.
    """
    words, number = [], 1
    try:
        with Path(path).open(encoding="utf-8", newline="\n") as file:
            count, dim = map(int, file.readline().split())
            vectors = np.zeros((count, dim), np.float32)
            for number in range(2, count + 2):
                word, *values = file.readline().rstrip().split(" ")
                if len(values) != dim:
                    raise ValueError(f"it has {len(values)} numbers instead of {dim}")
                vectors[number - 2] = np.array(values, np.float32)
                words.append(word)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: line {number} is not of the text format of word2vec ({error}). The first line has the numbers "
            "of words and of dimensions, each other line a word and its vector, separated by spaces"
        ) from error
    return tuple(words), vectors
