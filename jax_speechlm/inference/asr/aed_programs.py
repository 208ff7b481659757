"""The compiled programs of an attention encoder-decoder."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.segments import Segments
from jax_speechlm.core.vocabulary import Vocabulary
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


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The model of a run, LoRA merged, in the steps of transcription.

    Attributes:
      timestamps: whether texts have times among their ids.
    """

    experiment: Experiment
    tokenizer: Tokenizer
    timestamps: bool = False

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
        return self.experiment.model.decoder.max_tokens - len(self._prompt)

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
        """`(params, source, temperatures, keys, most tokens) -> Generated`."""

        def run(params: Params, source: Source, temperature_B: Array, keys_B: Array, limit_B: Array) -> Generated:
            decoder = functional.bind(self._graphdef, params).decoder
            prompts = self._prompts(decoder, source, len(temperature_B))
            lengths, start = jnp.full(len(prompts), prompts.shape[1]), jnp.zeros(len(prompts), jnp.int32)
            settings = {"max_new": self.most_tokens, "limit_B": limit_B}
            return generate(decoder, source, prompts, lengths, start, temperature_B, keys_B, self.rules, **settings)

        return jax.jit(run)

    def network(self, params: Params, ctc_weight: float) -> Network:
        """Returns the model as a beam search calls it."""
        has_ctc = ctc_weight > 0

        @functools.partial(jax.jit, static_argnames="size")
        def start(
            params: Params, frames_BxTxD: Array, length_B: Array, size: int
        ) -> tuple[network.State, network.Extensions]:
            model = functional.bind(self._graphdef, params)
            prompts = self._prompts(model.decoder, model.read(frames_BxTxD, Segments.of(length_B)), len(length_B))
            settings = {"size": size, "width": self._width(size), "has_ctc": has_ctc}
            return network.start(model, frames_BxTxD, length_B, prompts, self.rules, **settings)

        @jax.jit
        def advance(
            params: Params, state: network.State, origin_N: Array, tokens_N: Array
        ) -> tuple[network.State, network.Extensions]:
            model, size = functional.bind(self._graphdef, params), len(origin_N) // len(state.num_frames)
            return network.advance(model, state, origin_N, tokens_N, self.rules, width=self._width(size))

        bound = (functools.partial(function, params) for function in (start, advance))
        return Network(*bound, self.most_tokens, ctc_weight, self.rules.first_timestamp)

    @functools.cached_property
    def align(self) -> Any:
        """`(params, source, tokens, lengths) -> (weights [batch, heads, 1 + tokens, time], log-probabilities)`.

        The weights are those of attention to the frames, of the prompt's last token and of the text's; the
        log-probabilities [batch, tokens] are of its tokens.
        """

        def run(params: Params, source: Source, tokens_BxT: Array, length_B: Array) -> tuple[Array, Array]:
            decoder = functional.bind(self._graphdef, params).decoder
            prompts = self._prompts(decoder, source, len(tokens_BxT))
            first, rows = prompts.shape[1] - 1, jnp.concatenate([prompts, tokens_BxT], axis=1)
            position = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
            segment = (position < first + 1 + length_B[:, None]).astype(jnp.int32)
            hidden_BxTxD, weights_BxAxTxS = decoder.aligned(rows, segment, position, source)
            log_probs_BxT = jax.lax.map(  # a row at a time, because vocabularies are large
                lambda row: _log_probs(decoder, *row), (hidden_BxTxD[:, first:-1], tokens_BxT)
            )
            return weights_BxAxTxS[:, :, first:], log_probs_BxT

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

    def _prompts(self, decoder: AttentionDecoder, source: Source, rows: int) -> Int[Array, "batch prompt"]:
        prompts = jnp.broadcast_to(jnp.asarray(self._prompt), (rows, len(self._prompt)))
        if self._finds_language:
            ids = [id_ for _, id_ in self.experiment.objective.whisper.languages]
            prompts = prompts.at[:, 1].set(_languages(decoder, source, prompts[:, :1], ids))
        return prompts


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
