"""Predictor of a causal language model: scores and continues texts, and scores prefixes token by token for a search."""

import abc
import dataclasses
import functools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.vocabulary import PADDING, Modality, Vocabulary, pad
from jax_speechlm.decoding.lm.generate import Beam, Continuations, Sampling, check_counts, method_of
from jax_speechlm.inference.adapters import adapted
from jax_speechlm.inference.lm.generation import Continuation, generate, prompt_keys, read_continuations
from jax_speechlm.models.transformer import init_cache
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.lm.causal_lm import CausalLM, TextModel, token_losses
from jax_speechlm.training.runs import LoadedRun

_TOKENS_PER_BATCH = 8192  # affects speed and memory, not the result
_SHORTEST_ROW = 16


class ScoringWindow(NamedTuple):
    """Part of a document that is scored in one row: predictions `first` to `end` - 1, with context from `start` on.

    Prediction i is of token i + 1, given tokens `start` to i.
    """

    document: int
    start: int
    first: int
    end: int


class TextScorer(abc.ABC):
    """Scores texts by the tokens' negative log-likelihoods."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary

    @abc.abstractmethod
    def token_nll(
        self, documents: Sequence[Sequence[int]], *, stride: int | None = None
    ) -> list[Float[np.ndarray, " predictions"]]:
        """Computes the negative log-likelihood of the tokens of documents after the first, given the preceding ones.

        Documents longer than the context are scored in windows of that length, `stride` tokens apart. Every token is
        scored once, with a history of at least `context - stride` tokens where the document has them.

        Args:
          documents: ids with their boundaries.
          stride: in tokens; half of the context by default.

        Returns:
          For each document float32 [tokens - 1], in nats.
        """

    def encode(self, text: str) -> list[int]:
        """Encodes a text as a document: the vocabulary's prefix, if any, the text's ids, the boundary.

        Characters that the tokenizer does not know are dropped.
        """
        return self.vocabulary.enclose(self.tokenizer.encode(text))

    def text_nll(self, texts: Sequence[str], stride: int | None = None) -> list[Float[np.ndarray, " predictions"]]:
        """Computes the negative log-likelihood of every token of texts, including their ends.

        If the vocabulary has no prefix before a text, its first token is predicted from `Vocabulary.begin` alone and
        the others without it, so that all tokens are scored.

        Returns:
          For each text [tokens + 1], in nats.
        """
        documents = [self.encode(text) for text in texts]
        nats = self.token_nll(documents, stride=stride)
        if self.vocabulary.has_prefix:
            return nats
        first = self.token_nll([[self.vocabulary.begin, ids[0]] for ids in documents])
        return [np.concatenate(parts) for parts in zip(first, nats, strict=True)]

    def score(self, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Returns float64 log-probabilities of texts including their ends, in nats; long texts as in `token_nll`."""
        return np.array([-nats.sum(dtype=np.float64) for nats in self.text_nll(texts)])


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel(TextScorer):
    """A causal language model and its tokenizer.

    Attributes:
      params: {"transformer": ...}.
      context: length of its training rows in tokens; the longest history that it is given.
      checkpoint: where it was read from, for messages.
      num_units: speech units in its vocabulary (`UnitModel`).
    """

    abilities: ClassVar[tuple[str, ...]] = ("generate", "score")

    model: TransformerConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    context: int
    checkpoint: AnyPath | None = None
    num_units: int = 0

    @classmethod
    def load(cls, path: str | os.PathLike, adapter: str | os.PathLike | None = None) -> "LanguageModel":
        """Reads a run's newest checkpoint, and an adapter of it (`inference.adapters`).

        Raises:
          CheckpointError: it cannot be read, or another objective trained it.
          ExportError: the adapter cannot be read, or is of another model.
        """
        run = adapted(LoadedRun.load(path, CausalLM, "score text"), adapter)
        return cls(run.experiment.model, run.tokenizer, run.params, run.experiment.data.context, run.checkpoint)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer, num_units=self.num_units)

    def prompt(self, text: str) -> list[int]:
        """Encodes a prompt: as `encode` without the boundary, or `begin` if nothing is left."""
        return self.vocabulary.prompt(self.tokenizer.encode(text))

    def token_nll(
        self, documents: Sequence[Sequence[int]], *, stride: int | None = None
    ) -> list[Float[np.ndarray, " predictions"]]:
        stride = max(1, self.context // 2) if stride is None else stride
        if not 1 <= stride <= self.context:
            raise ValueError(f"stride must lie between 1 and the context ({self.context}), got {stride}")
        nats = [np.zeros(max(0, len(ids) - 1), np.float32) for ids in documents]
        for width, windows in _by_width(windows_of(documents, self.context, stride), self.context):
            most = max(1, _TOKENS_PER_BATCH // width)
            for begin in range(0, len(windows), most):
                part = windows[begin : begin + most]
                rows = min(most, 1 << (len(part) - 1).bit_length())  # few shapes, hence few programs
                tokens = pad([documents[w.document][w.start : w.end] for w in part], width, rows)
                targets = pad([documents[w.document][w.start + 1 : w.end + 1] for w in part], width, rows)
                lengths = np.array([w.end - w.start for w in part] + [0] * (rows - len(part)), np.int32)
                scored = jax.device_get(self._nats(self.params, tokens, targets, lengths))
                for w, row in zip(part, scored, strict=False):
                    nats[w.document][w.first : w.end] = row[w.first - w.start : w.end - w.start]
        return nats

    def generate(
        self,
        prompts: Sequence[str],
        method: Sampling | Beam = Sampling(),  # noqa: B008  frozen
        *,
        max_tokens: int = 128,
        samples: int = 1,
        seed: int = 0,
    ) -> list[list[Continuation]]:
        """Continues texts. Results do not depend on other prompts or their order.

        Args:
          prompts: beginnings of texts; an empty one generates from the start.
          max_tokens: most tokens added; a full context ends a text too.
          samples: continuations drawn per prompt; a beam search returns its hypotheses instead, best first.

        Raises:
          ValueError: a prompt fills the context, or `max_tokens` or `samples` is below 1.
        """
        starts = [self.tokenizer.encode(prompt) for prompt in prompts]
        ids = [self.vocabulary.prompt(start) for start in starts]
        continuations = self.continue_ids(ids, method, max_tokens=max_tokens, samples=samples, seed=seed)

        def reader(start: list[int]) -> Callable[[list[int]], str]:
            begin = len(self.tokenizer.decode(start))  # a token may continue a word, so both are decoded together
            return lambda ids: self.tokenizer.decode(start + ids)[begin:]

        return [
            read_continuations(arrays, self.vocabulary, reader(start))
            for start, arrays in zip(starts, continuations, strict=True)
        ]

    def continue_ids(
        self,
        ids: Sequence[Sequence[int]],
        method: Sampling | Beam,
        *,
        max_tokens: int,
        samples: int = 1,
        seed: int = 0,
        modality: Modality | None = None,
    ) -> list[Continuations]:
        """Continues prompts given as ids (`Vocabulary.prompt`) as `generate` does; `modality` restricts new tokens.

        Returns:
          For each prompt arrays [samples or beam, ...].
        """
        check_counts(max_tokens=max_tokens, samples=samples)
        if not ids:
            return []
        for row in ids:
            if len(row) >= self.context:
                raise ValueError(
                    f"a prompt of {len(row)} tokens leaves no room to go on: {self.checkpoint or 'the model'} was "
                    f"trained on {self.context} tokens. Shorten the prompt, which begins "
                    f"{self.tokenizer.decode(n for n in row[:60] if n < self.vocabulary.boundary)[:60]!r}"
                )
        keys, rows, shape = None, list(ids), ()
        if isinstance(method, Sampling):
            prompts = [np.array(row, np.int32).tobytes() for row in ids]
            keys = jnp.concatenate([prompt_keys(seed, prompt, samples) for prompt in prompts])
            rows, shape = [row for row in ids for _ in range(samples)], (len(ids), samples)
        lengths = np.array([len(row) for row in rows], np.int32)
        width = -(-int(lengths.max()) // _SHORTEST_ROW) * _SHORTEST_ROW
        options = {"method": method, "max_new": min(max_tokens, self.context), "modality": modality}
        continuations = jax.device_get(self._generate(self.params, pad(rows, width), lengths, keys, **options))
        if shape:
            continuations = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), continuations)
        return [Continuations(*arrays) for arrays in zip(*continuations, strict=True)]

    def session(self, slots: int, length: int, width: int) -> "DecodeState":
        """Returns a state that scores prefixes token by token."""
        return DecodeState(self, slots, length, width)

    @functools.cached_property
    def graphdef(self):
        return functional.declare(lambda rngs: TextModel(self.model, self.vocabulary.size, rngs=rngs)).graphdef

    @functools.cached_property
    def _nats(self):
        def nats(params: Params, tokens, targets, lengths):
            transformer = functional.bind(self.graphdef, params).transformer
            position = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
            inside = position < lengths[:, None]
            hidden = transformer(tokens, inside.astype(jnp.int32), position)
            return token_losses(transformer, hidden, targets, inside.astype(jnp.float32))[1].nll

        return jax.jit(nats)

    @functools.cached_property
    def _generate(self):
        def run(params: Params, prompt, lengths, keys, *, method, max_new, modality) -> Continuations:
            transformer = functional.bind(self.graphdef, params).transformer
            limits = {"max_new": max_new, "context": self.context, "modality": modality}
            return generate(transformer, self.vocabulary, prompt, lengths, keys, method, **limits)

        return jax.jit(run, static_argnames=("method", "max_new", "modality"))

    @functools.cached_property
    def _step(self):
        def step(params: Params, cache, parents, slots, tokens, positions):
            """Writes cached row parents[i] extended by tokens[i] to row slots[i]; returns next-token scores."""
            transformer = functional.bind(self.graphdef, params).transformer
            rows = jax.tree.map(lambda x: x[:, parents], cache)
            hidden, rows = transformer.decode(tokens[:, None], positions[:, None], rows)
            log_probs = jax.nn.log_softmax(transformer.logits(hidden[:, 0]))[:, : self.vocabulary.boundary + 1]
            cache = jax.tree.map(lambda x, row: x.at[:, slots].set(row, mode="drop"), cache, rows)
            return log_probs.at[:, PADDING].set(-jnp.inf), cache

        return jax.jit(step, donate_argnums=1)


class DecodeState:
    """Key-value cache of text prefixes that a search extends token by token.

    Each prefix occupies a slot. Shapes are fixed: `slots` prefixes, at most `width` of them extended in one call, at
    most `length` tokens per prefix. Every prefix starts with `Vocabulary.begin`, which predicts its first token.
    """

    def __init__(self, lm: LanguageModel, slots: int, length: int, width: int):
        self.lm, self.slots, self.length, self.width = lm, slots, length, width
        self._cache = init_cache(lm.model, slots, length + 1)
        self._filled = np.zeros(slots, np.int64)  # tokens in each slot, the boundary included

    def start(self, slot: int) -> Float[np.ndarray, " vocab"]:
        """Puts the empty prefix into a slot; returns its row of next-token log-probabilities, as `extend`."""
        self._filled[slot] = 0
        return self._run([slot], [self.lm.vocabulary.begin], [slot])[0]

    def extend(
        self, parents: Sequence[int], tokens: Sequence[int], slots: Sequence[int]
    ) -> Float[np.ndarray, "prefixes vocab"]:
        """Writes the prefix of slot `parents[i]` extended by `tokens[i]` to slot `slots[i]`, for all i at once.

        All parents are read before any slot is written.

        Returns:
          float32 [prefixes, V + 1], next-token log-probabilities in nats: id 0 is -inf, 1 to V - 1 are the tokenizer's,
          V ends the text.

        Raises:
          ValueError: more prefixes than `width`, or one longer than `length`.
        """
        if len(slots) > self.width:
            raise ValueError(f"a session of width {self.width} was asked to extend {len(slots)} prefixes at once")
        if any(self._filled[parent] > self.length for parent in parents):
            raise ValueError(f"a prefix of more than {self.length} tokens does not fit the session's length")
        return self._run(parents, tokens, slots)

    def _run(self, parents: Sequence[int], tokens: Sequence[int], slots: Sequence[int]) -> np.ndarray:
        rest = self.width - len(slots)
        positions = self._filled[list(parents)]
        log_probs, self._cache = self.lm._step(
            self.lm.params,
            self._cache,
            _filled_up(parents, rest, 0),
            _filled_up(slots, rest, self.slots),  # beyond the last slot: dropped
            _filled_up(tokens, rest, PADDING),
            _filled_up(positions.tolist(), rest, -1),
        )
        self._filled[list(slots)] = positions + 1
        return np.asarray(log_probs[: len(slots)])


def generate_texts(
    checkpoint: Positional[Path],
    prompts: Positional[tuple[str, ...]] = ("",),
    max_tokens: int = 128,
    samples: int = 1,
    sampling: OmitArgPrefixes[Sampling] = Sampling(),  # noqa: B008  frozen
    beam_size: int = 0,
    length_penalty: float = 1.0,
    seed: int = 0,
    format: Literal["text", "json"] = "text",
    adapter: Path | None = None,
) -> None:
    """Continues texts. A continuation depends on its prompt, the settings and the seed, not on other prompts.

    Args:
      checkpoint: a language model's run directory, or one of its checkpoints/<step> folders.
      prompts: beginnings of texts; "" generates from the start.
      max_tokens: most tokens added; the model may end the text before.
      samples: continuations per prompt.
      sampling: sampling of tokens; --temperature 0 always takes the most likely.
      beam_size: above 0: beam search instead of sampling, with this many hypotheses, all of which are printed.
      length_penalty: of the beam search: 0 compares texts by probability, 1 by its geometric mean over tokens.
      seed: seed of sampling.
      format: "text" prints prompt and continuation; "json" prints JSON lines with prompt, text, log_prob (nats),
        num_tokens and ended.
      adapter: folder of LoRA in peft's format, trained on this run.
    """
    method = method_of(sampling, beam_size, length_penalty)
    check_counts(max_tokens=max_tokens, samples=samples)
    lm = LanguageModel.load(checkpoint, adapter)
    results = lm.generate(prompts, method, max_tokens=max_tokens, samples=samples, seed=seed)
    for prompt, continuations in zip(prompts, results, strict=True):
        for each in continuations:
            if format == "json":
                print(json.dumps({"prompt": prompt, **each._asdict()}, ensure_ascii=False), flush=True)
            else:
                print(prompt + each.text, flush=True)


def windows_of(documents: Sequence[Sequence[int]], context: int, stride: int) -> Iterator[ScoringWindow]:
    """Yields windows that together score every prediction of every document once."""
    for number, ids in enumerate(documents):
        done, start = 0, 0
        while done < len(ids) - 1:
            end = min(start + context, len(ids) - 1)
            yield ScoringWindow(number, start, done, end)
            done, start = end, start + stride


def _by_width(windows: Iterator[ScoringWindow], context: int) -> Iterator[tuple[int, list[ScoringWindow]]]:
    """Groups windows by the padded length of their row: the context divided by a power of two."""
    groups: dict[int, list[ScoringWindow]] = defaultdict(list)
    for window in windows:
        width = context
        while width // 2 >= max(_SHORTEST_ROW, window.end - window.start):
            width //= 2
        groups[width].append(window)
    yield from sorted(groups.items())


def _filled_up(values: Sequence[int], rest: int, filler: int) -> Int[np.ndarray, " width"]:
    return np.array([*values, *[filler] * rest], np.int32)
