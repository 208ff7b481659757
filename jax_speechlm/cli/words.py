"""`jax-speechlm words`: nearest words, similarities and analogies of word vectors."""

from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional
from tyro.extras import subcommand_cli_from_dict

from jax_speechlm.inference.word_vectors import Neighbour, WordTable, cosine


def words(argv: Sequence[str], prog: str) -> None:
    """Runs one of the actions: nearest, similarity, analogy."""
    subcommand_cli_from_dict({"nearest": nearest, "similarity": similarity, "analogy": analogy}, prog=prog, args=argv)


def nearest(run: Positional[Path], text: Positional[str], count: int = 10) -> list[Neighbour]:
    """Prints the words nearest to a word, or to the mean vector of several.

    Args:
      run: a run's directory, one of its checkpoints/<step> folders, or a file in the text format of word2vec.
      text: a word, or several, which are left out of the answer.
      count: how many words to print.
    """
    table, given = WordTable.load(run), text.split()
    query = sum(table.vector(word) for word in given) / max(len(given), 1)
    return _print(table.nearest(query, count, without=given))


def similarity(run: Positional[Path], first: Positional[str], second: Positional[str]) -> float:
    """Prints the cosine similarity of two words, or of the mean vectors of two texts.

    Args:
      run: a run's directory, one of its checkpoints/<step> folders, or a file in the text format of word2vec.
      first: a word, or a text.
      second: a word, or a text.
    """
    table = WordTable.load(run)
    value = cosine(*(table.vector(text) if text in table else table.embed([text])[0] for text in (first, second)))
    print(f"{value:.4f}")
    return value


def analogy(
    run: Positional[Path], first: Positional[str], second: Positional[str], third: Positional[str], count: int = 5
) -> list[Neighbour]:
    """Prints the words that are to the third word as the second is to the first.

    Args:
      run: a run's directory, one of its checkpoints/<step> folders, or a file in the text format of word2vec.
      first, second, third: words, such as man king woman.
      count: how many words to print.
    """
    return _print(WordTable.load(run).analogy(first, second, third, count))


def _print(neighbours: list[Neighbour]) -> list[Neighbour]:
    width = max((len(each.word) for each in neighbours), default=0)
    for word, value in neighbours:
        print(f"{word:<{width}}  {value:.4f}")
    return neighbours
