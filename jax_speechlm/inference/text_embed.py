"""Vectors of texts by a text encoder, as sentence-transformers computes them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.inference.text_batches import outputs_of_rows
from jax_speechlm.models.transformer import Transformer
from jax_speechlm.nn import functional
from jax_speechlm.nn.layers import unit_length
from jax_speechlm.objectives.heads.pooling import Pooling, pool
from jax_speechlm.training.runs import LoadedRun


@dataclasses.dataclass(frozen=True)
class TextEmbedder:
    """A frozen transformer and its tokenizer.

    Attributes:
      pooling: how the hidden states of the last layer become one vector.
      normalize: whether that gets unit length, so that the dot product of two is their cosine similarity.
    """

    abilities: ClassVar[tuple[str, ...]] = ("embed",)

    run: LoadedRun
    pooling: Pooling = "mean"
    normalize: bool = False

    @classmethod
    def load(cls, path: str | Path) -> "TextEmbedder":
        """Reads a run's newest checkpoint, or a `checkpoints/<step>` folder; pooling is as the run's objective says."""
        run = LoadedRun.read(path)
        objective = run.experiment.objective
        return cls(run, getattr(objective, "pooling", "mean"), getattr(objective, "normalize", False))

    def vectors(self, texts: Sequence[str], pooling: Pooling | None = None) -> Float[np.ndarray, "texts dim"]:
        """Computes a vector of each text, which does not depend on the others.

        Args:
          texts: of which the first `data.context` tokens are used, with those that enclose the text.
          pooling: in place of the run's own.
        """
        tokenizer, context = self.run.tokenizer, self.run.experiment.data.context
        vocabulary = Vocabulary.of(tokenizer)
        room = context - len(vocabulary.enclose([]))
        rows = [vocabulary.enclose(ids[:room]) for ids in tokenizer.encode_batch(list(texts))]
        compute = functools.partial(self._compute, self.run.params["transformer"], pooling=pooling or self.pooling)
        vectors = outputs_of_rows(compute, rows, context)
        return np.array(vectors, np.float32).reshape(len(texts), self.run.experiment.model.dim)

    @functools.cached_property
    def _compute(self):
        model, size = self.run.experiment.model, Vocabulary.of(self.run.tokenizer).size
        graphdef = functional.declare(lambda rngs: Transformer(model, size, rngs=rngs)).graphdef

        def compute(params: functional.Params, batch: Batch, pooling: Pooling) -> jax.Array:
            encoder = functional.bind(graphdef, params)
            hidden_BxTxD = encoder(batch["tokens"], batch["segment"], batch["position"])
            vectors_BxD = pool(hidden_BxTxD, jnp.asarray(batch["segment"]) > 0, pooling)
            return unit_length(vectors_BxD) if self.normalize else vectors_BxD

        return jax.jit(compute, static_argnames="pooling")


def embed_texts(
    checkpoint: Positional[Path],
    texts: Positional[tuple[str, ...]],
    out: Path,
    lines: bool = False,
    pooling: Pooling | None = None,
) -> None:
    """Writes vectors of texts. The NumPy file has `texts`, and `embeddings`, float32 [texts, dim].

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      texts: texts; of a long one the run's data.context tokens are used.
      out: the .npz file to write.
      lines: the texts are names of text files, of which each line is a text.
      pooling: mean, or cls for the first token; by default as the run was imported.
    """
    model = TextEmbedder.load(checkpoint)
    write_embeddings(out, texts, lines, functools.partial(model.vectors, pooling=pooling))


def write_embeddings(
    out: Path, texts: Sequence[str], lines: bool, embed: Callable[[Sequence[str]], Float[np.ndarray, "texts dim"]]
) -> None:
    """Writes texts, or the lines of text files, and the vectors that `embed` computes of them."""
    if lines:
        texts = tuple(line for file in texts for line in _read_lines(Path(file)))
    embeddings = embed(texts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:  # numpy would add .npz to another name
        np.savez(file, texts=np.array(texts), embeddings=embeddings)
    print(f"{out}: {' x '.join(map(str, embeddings.shape))}")


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text in UTF-8 ({error}): name a text file with --lines") from error
