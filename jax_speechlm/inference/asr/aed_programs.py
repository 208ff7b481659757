"""The compiled programs of an attention encoder-decoder."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.segments import Segments
from jax_speechlm.core.vocabulary import Vocabulary, pad
from jax_speechlm.decoding.attention import network
from jax_speechlm.decoding.attention.beam import Network
from jax_speechlm.decoding.attention.generate import Generated, Rules, generate
from jax_speechlm.frontend.frontend import features
from jax_speechlm.models.attention_decoder import AttentionDecoder, Source, init_cache
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.recipes.experiment import Experiment


class Prompts(NamedTuple):
    """Ids before texts, then padding, and their number."""

    ids: Int[np.ndarray, "batch prompt"] | Int[Array, "batch prompt"]
    length: Int[np.ndarray, " batch"] | Int[Array, " batch"]


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The model of a run, LoRA merged, in the steps of transcription.

    Attributes:
      timestamps: whether texts have times among their ids.
      reads_context: whether text may precede a prompt, which costs half of the positions.
    """

    experiment: Experiment
    tokenizer: Tokenizer
    timestamps: bool = False
    reads_context: bool = False

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @functools.cached_property
    def rules(self) -> Rules:
        """What may be generated."""
        vocabulary, whisper = self.vocabulary, self.experiment.objective.whisper
        allowed, first = vocabulary.may_follow(), np.ones(vocabulary.size, bool)
        if whisper is None:
            return Rules(vocabulary.boundary, allowed, first)
        allowed[list(whisper.suppressed)] = False
        first[list(whisper.suppressed_first)] = False
        rules = Rules(vocabulary.boundary, allowed, first, no_speech=whisper.no_speech)
        if not self.timestamps:
            return rules
        allowed[whisper.no_timestamps] = False
        return rules._replace(first_timestamp=whisper.first_timestamp)

    @property
    def most_tokens(self) -> int:
        """Positions of a text after its prompt."""
        return self.experiment.model.decoder.max_tokens - self._prompt_width

    @property
    def most_context(self) -> int:
        """Ids of text that may precede a prompt: half of the positions, as in OpenAI's code."""
        return self.experiment.model.decoder.max_tokens // 2 - 1

    def prompts(self, contexts: Sequence[Sequence[int]]) -> Prompts:
        """Returns the prompts of texts, each after the last `most_context` ids of its context."""
        rows = []
        for context in contexts:
            before = [self.experiment.objective.whisper.previous, *context[-self.most_context :]] if context else []
            rows.append([*before, *self._prompt.tolist()])
        return Prompts(pad(rows, self._prompt_width), np.array([len(row) for row in rows], np.int32))

    @functools.cached_property
    def frames(self) -> Any:
        """`(params, batch) -> (the encoder's frames, their number in each row)`."""

        def run(params: Params, batch: Batch) -> tuple[Array, Array]:
            model = functional.bind(self._graphdef, params)
            frames_BxTxD, segments = model.encode_speech(*features(batch, self.experiment.frontend, None))
            return frames_BxTxD, segments.length[:, 0]

        return jax.jit(run)

    @functools.cached_property
    def read(self) -> Any:
        """`(params, frames, lengths) -> Source`."""

        def run(params: Params, frames_BxTxD: Array, length_B: Array) -> Source:
            return functional.bind(self._graphdef, params).read(frames_BxTxD, Segments.of(length_B))

        return jax.jit(run)

    @functools.cached_property
    def generate(self) -> Any:
        """`(params, source, prompts, temperatures, keys, most tokens) -> Generated`."""

        def run(
            params: Params, source: Source, prompts: Prompts, temperature_B: Array, keys_B: Array, limit_B: Array
        ) -> Generated:
            decoder = functional.bind(self._graphdef, params).decoder
            prompts = self._with_language(decoder, source, prompts)
            parts = (*prompts, self._start(prompts), temperature_B, keys_B, self.rules)
            return generate(decoder, source, *parts, max_new=self.most_tokens, limit_B=limit_B)

        return jax.jit(run)

    def network(self, params: Params, ctc_weight: float, context: Sequence[int]) -> Network:
        """Returns the model as a beam search calls it, with a context that all texts have."""
        start, advance = self._searches(ctc_weight > 0)
        bound = functools.partial(start, params, self.prompts([context])), functools.partial(advance, params)
        return Network(*bound, self.most_tokens, ctc_weight, self.rules.first_timestamp)

    @functools.cached_property
    def with_context(self) -> "Programs":
        """These programs, if text may precede their prompts, or else such, compiled once for all texts."""
        return self if self.reads_context else dataclasses.replace(self, reads_context=True)

    @functools.cached_property
    def _searches(self) -> Any:
        """`(whether CTC has a part) -> (start, advance)` of a beam search."""
        return functools.cache(self._search)

    def _search(self, has_ctc: bool) -> tuple[Any, Any]:
        @functools.partial(jax.jit, static_argnames="size")
        def start(
            params: Params, prompt: Prompts, frames_BxTxD: Array, length_B: Array, size: int
        ) -> tuple[network.State, network.Extensions]:
            model = functional.bind(self._graphdef, params)
            source = model.read(frames_BxTxD, Segments.of(length_B))
            prompts = Prompts(*(jnp.repeat(each, len(length_B), axis=0) for each in prompt))
            prompts = self._with_language(model.decoder, source, prompts)
            settings = {"size": size, "width": self._width(size), "has_ctc": has_ctc}
            parts = (*prompts, self._start(prompts), self.rules)
            return network.start(model, frames_BxTxD, length_B, *parts, **settings)

        @jax.jit
        def advance(
            params: Params, state: network.State, origin_N: Array, tokens_N: Array
        ) -> tuple[network.State, network.Extensions]:
            model, size = functional.bind(self._graphdef, params), len(origin_N) // len(state.num_frames)
            return network.advance(model, state, origin_N, tokens_N, self.rules, width=self._width(size))

        return start, advance

    @functools.cached_property
    def align(self) -> Any:
        """`(params, source, prompts, tokens, lengths) -> (weights, log-probabilities)`.

        The weights [batch, heads, 1 + tokens, time] are those of attention to the frames, of the prompt's last token
        and of the text's; the log-probabilities [batch, tokens] are of its tokens.
        """

        def run(
            params: Params, source: Source, prompts: Prompts, tokens_BxT: Array, length_B: Array
        ) -> tuple[Array, Array]:
            decoder = functional.bind(self._graphdef, params).decoder
            prompts = self._with_language(decoder, source, prompts)
            most, first_Bx1 = tokens_BxT.shape[1], prompts.length[:, None]
            index = jnp.arange(prompts.ids.shape[1] + most)
            after = jnp.take_along_axis(tokens_BxT, jnp.clip(index - first_Bx1, 0, most - 1), axis=1)
            rows = jnp.where(index < first_Bx1, jnp.pad(prompts.ids, ((0, 0), (0, most))), after)
            position = jnp.broadcast_to(index, rows.shape)
            segment = (position < first_Bx1 + length_B[:, None]).astype(jnp.int32)
            hidden_BxTxD, weights_BxAxTxS = decoder.aligned(rows, segment, position, source)
            places_BxT = first_Bx1 - 1 + jnp.arange(most + 1)
            weights_BxAxTxS = jnp.take_along_axis(weights_BxAxTxS, places_BxT[:, None, :, None], axis=2)
            hidden_BxTxD = jnp.take_along_axis(hidden_BxTxD, places_BxT[:, :-1, None], axis=1)
            log_probs_BxT = jax.lax.map(  # a row at a time, because vocabularies are large
                lambda row: _log_probs(decoder, *row), (hidden_BxTxD, tokens_BxT)
            )
            return weights_BxAxTxS, log_probs_BxT

        return jax.jit(run)

    def _width(self, size: int) -> int:
        """Returns how many extensions of a prefix a beam of this size scores."""
        return min(size, self.vocabulary.size - 1)

    @functools.cached_property
    def _graphdef(self) -> Any:
        model = self.experiment.model.replace(lora=LoRA())
        return functional.declare(self.experiment.objective.make_model(model, self.tokenizer)).graphdef

    @property
    def _asked(self) -> AED:
        """The objective, with a language that stands for one that is to be found."""
        objective = self.experiment.objective
        return objective.replace(language=objective.whisper.languages[0][0]) if self._finds_language else objective

    @property
    def _finds_language(self) -> bool:
        objective = self.experiment.objective
        return objective.whisper is not None and bool(objective.whisper.languages) and objective.language is None

    @functools.cached_property
    def _prompt(self) -> Int[np.ndarray, " prompt"]:
        return self._asked.prompt_ids(self.tokenizer, self.timestamps)

    @property
    def _prompt_width(self) -> int:
        return len(self._prompt) + (1 + self.most_context) * self.reads_context

    def _start(self, prompts: Prompts) -> Int[Array, " batch"]:
        """Returns the place of the first id of a prompt, after its context."""
        return jnp.asarray(prompts.length) - len(self._prompt)

    def _with_language(self, decoder: AttentionDecoder, source: Source, prompts: Prompts) -> Prompts:
        prompts = Prompts(*map(jnp.asarray, prompts))
        if not self._finds_language:
            return prompts
        rows, place_B = jnp.arange(len(prompts.ids)), self._start(prompts)
        ids = [id_ for _, id_ in self.experiment.objective.whisper.languages]
        language_B = _languages(decoder, source, prompts.ids[rows, place_B][:, None], ids)
        return prompts._replace(ids=prompts.ids.at[rows, place_B + 1].set(language_B))


def _languages(
    decoder: AttentionDecoder, source: Source, start_Bx1: Int[Array, "batch 1"], languages: Sequence[int]
) -> Int[Array, " batch"]:
    """Returns the id of the most probable language of each row."""
    cache = init_cache(decoder.config, len(start_Bx1), 1)
    hidden, _ = decoder.decode(start_Bx1, jnp.zeros_like(start_Bx1), cache, source)
    logits: Float[Array, "batch vocab"] = decoder.logits(hidden[:, 0])
    ids = jnp.asarray(languages, jnp.int32)
    return ids[jnp.argmax(logits[:, ids], axis=-1)]


def _log_probs(
    decoder: AttentionDecoder, hidden_TxD: Float[Array, "tokens dim"], tokens_T: Int[Array, " tokens"]
) -> Float[Array, " tokens"]:
    logits_TxV = decoder.logits(hidden_TxD)
    chosen_T = jnp.take_along_axis(logits_TxV, tokens_T[:, None], axis=1)[:, 0]
    return chosen_T - jax.nn.logsumexp(logits_TxV, axis=-1)
