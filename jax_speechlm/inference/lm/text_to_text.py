"""Predictor of a text-to-text model: generates the text that is asked for, given another."""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.vocabulary import Vocabulary, pad
from jax_speechlm.decoding.lm.generate import GREEDY, Beam, Continuations, Sampling, check_counts, method_of
from jax_speechlm.inference.lm.generation import Continuation, generate, prompt_keys, read_continuations
from jax_speechlm.models.attention_decoder import Reader
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.lm.text_to_text import TextToText, make_model
from jax_speechlm.training.runs import LoadedRun

_ROWS = 32  # texts of a batch
_WIDTH = 16  # of whose multiples the lengths of rows are, so that few programs are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class TextToTextModel:
    """A text-to-text model and its tokenizer.

    Attributes:
      params: {"transformer": ..., "decoder": ...}.
      checkpoint: where it was read from, for messages.
    """

    abilities: ClassVar[tuple[str, ...]] = ("generate",)

    model: TextEncoderDecoderConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    checkpoint: AnyPath | None = None

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TextToTextModel":
        """Reads a run's newest checkpoint.

        Raises:
          CheckpointError: it cannot be read, or another objective trained it.
        """
        run = LoadedRun.load(path, TextToText, "answer a text by another")
        return cls(run.experiment.model, run.tokenizer, run.params, run.checkpoint)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    def generate(
        self,
        texts: Sequence[str],
        method: Sampling | Beam = GREEDY,
        *,
        max_tokens: int = 128,
        samples: int = 1,
        seed: int = 0,
    ) -> list[list[Continuation]]:
        """Generates the texts that are asked for. Results do not depend on other texts or their order.

        Args:
          texts: the given texts, each with the prefix of its task.
          max_tokens: most tokens of a generated text.
          samples: texts drawn for each; a beam search returns its hypotheses instead, best first.

        Raises:
          ValueError: `max_tokens` or `samples` is below 1.
        """
        check_counts(max_tokens=max_tokens, samples=samples)
        ids = [[self.vocabulary.begin, *self.tokenizer.encode(text)] for text in texts]
        results: list[list[Continuation]] = [[] for _ in ids]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            found = self._generated([ids[row] for row in rows], method, max_tokens, samples, seed)
            for row, arrays in zip(rows, found, strict=True):
                results[row] = read_continuations(arrays, self.vocabulary, self.tokenizer.decode)
        return results

    def _generated(
        self, ids: list[list[int]], method: Sampling | Beam, max_tokens: int, samples: int, seed: int
    ) -> list[Continuations]:
        keys, shape = None, (len(ids),)
        if isinstance(method, Sampling):
            keys = jnp.concatenate([prompt_keys(seed, np.array(row, np.int32).tobytes(), samples) for row in ids])
            ids, shape = [row for row in ids for _ in range(samples)], (len(ids), samples)
        width = -(-max(map(len, ids)) // _WIDTH) * _WIDTH
        lengths = np.array([len(row) for row in ids], np.int32)
        most = min(max_tokens, self.model.decoder.max_tokens - 1)  # the boundary before a text has a position
        arrays = self._program(self.params, pad(ids, width), lengths, keys, method=method, max_new=most)
        arrays = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), jax.device_get(arrays))
        return [Continuations(*row) for row in zip(*arrays, strict=True)]

    @functools.cached_property
    def _program(self):
        graphdef = functional.declare(make_model(self.model, self.vocabulary, TextToText().kind)).graphdef

        def run(
            params: Params, tokens_BxT: Array, length_B: Array, keys_B: Array | None, *, method, max_new
        ) -> Continuations:
            model = functional.bind(graphdef, params)
            place = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1], dtype=jnp.int32), tokens_BxT.shape)
            source = model.encode(tokens_BxT, (place < length_B[:, None]).astype(jnp.int32), place)
            start = jnp.full((len(tokens_BxT), 1), self.vocabulary.boundary), jnp.ones(len(tokens_BxT), jnp.int32)
            limits = {"max_new": max_new, "context": self.model.decoder.max_tokens}
            return generate(Reader(model.decoder, source), self.vocabulary, *start, keys_B, method, **limits)

        return jax.jit(run, static_argnames=("method", "max_new"))


def generate_texts(
    checkpoint: Positional[Path],
    texts: Positional[tuple[str, ...]],
    max_tokens: int = 128,
    samples: int = 1,
    sampling: OmitArgPrefixes[Sampling] = GREEDY,
    beam_size: int = 0,
    length_penalty: float = 1.0,
    seed: int = 0,
    format: Literal["text", "json"] = "text",
) -> None:
    """Answers texts by a text-to-text model, such as "translate Czech: dobré ráno".

    Args:
      checkpoint: the run's directory, or one of its checkpoints/<step> folders.
      texts: given texts, each with the words that tell its task.
      max_tokens: most tokens of an answer.
      samples: answers drawn for each text.
      sampling: sampling of tokens; --temperature 0, the default, always takes the most likely.
      beam_size: above 0: beam search instead of sampling, with this many hypotheses, all of which are printed.
      length_penalty: of the beam search: 0 compares texts by probability, 1 by its geometric mean over tokens.
      seed: seed of sampling.
      format: "text" prints answers; "json" prints JSON lines with given, text, log_prob (nats), num_tokens and ended.
    """
    method = method_of(sampling, beam_size, length_penalty)
    check_counts(max_tokens=max_tokens, samples=samples)
    model = TextToTextModel.load(checkpoint)
    results = model.generate(texts, method, max_tokens=max_tokens, samples=samples, seed=seed)
    for text, answers in zip(texts, results, strict=True):
        for each in answers:
            line = json.dumps({"given": text, **each._asdict()}, ensure_ascii=False) if format == "json" else each.text
            print(line, flush=True)
