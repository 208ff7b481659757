"""`jax-speechlm export RUN --to word2vec`: word vectors as a text file, which gensim and others open."""

from pathlib import Path

import numpy as np
from tyro.conf import Positional

from data_pipelines.storage.word2vec import read_word2vec, write_word2vec
from jax_speechlm.inference.word_vectors import WordTable


def export_run(checkpoint: Positional[Path], out: Path) -> None:
    """Writes the vectors of a run in the text format of word2vec, and compares what is read back.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      out: the text file to write.

    Raises:
      ValueError: what is read back differs.
    """
    table = WordTable.load(checkpoint)
    write_word2vec(out, table.words, table.vectors)
    words, vectors = read_word2vec(out)
    if words != table.words or not np.array_equal(vectors, table.vectors):
        raise ValueError(f"{out} is not read back as it was written: remove it, and report how to repeat this")
    print(f"{out}: vectors of {len(words):,} words, {vectors.shape[1]} dimensions, read back without a difference")
