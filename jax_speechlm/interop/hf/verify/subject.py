"""The subject of all comparisons with transformers: the opened folder, the run, and the inputs."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from jaxtyping import Float, Int, Int16

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.vocabulary import PADDING, Vocabulary
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.inference.segmentation import in_batches
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.vocode import GriffinLimVocoder
from jax_speechlm.interop.hf.registry import Package, ids_in_folder, vocabulary_of
from jax_speechlm.interop.hf.verify.verdict import Differs
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA, merge
from jax_speechlm.training.runs import LoadedRun

TOLERANCE = 1e-4  # of features and of a model's outputs, absolute

Clip = Int16[np.ndarray, "..."]
TEXTS = (
    "In the beginning was the word",
    "  two  spaces, and one behind ",
    "Ünïcödé: ﬁve naïve façades, ½ of №1, 日本",
    "a line\n\n and another\n",
    "",
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A folder opened by transformers (`model`), and the run that it is compared with, in float32.

    `made` is the run in Hugging Face's terms; `clips` and `texts` are what to compare on, `vocoder` the
    vocoder of a voice, as it was read from an exported folder.
    """

    folder: Path
    run: LoadedRun
    made: Package
    model: Any
    clips: Sequence[Clip]
    texts: Sequence[str]
    vocoder: LoadedRun | None = None

    @cached_property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def extractor(self) -> Any:
        return transformers.AutoFeatureExtractor.from_pretrained(self.folder)

    @cached_property
    def synthesizer(self) -> Synthesizer:
        """The run as a voice."""
        return Synthesizer(self.run, GriffinLimVocoder(self.run.experiment.frontend.mel))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_of(self.run.experiment, self.run.tokenizer)

    @cached_property
    def is_foreign(self) -> bool:
        """Whether the tokenizer was imported, so that ids differ between the folder and the run."""
        return isinstance(self.run.tokenizer, HuggingFaceTokenizer)

    @property
    def waves(self) -> list[np.ndarray]:
        return [clip / np.float32(32768) for clip in self.clips]

    @property
    def takes_samples(self) -> bool:
        """Whether the model's features are samples."""
        return isinstance(self.run.experiment.frontend.mel, Waveform)

    @property
    def has_batches(self) -> bool:
        """Whether transformers' outputs of a clip are the same in a batch."""
        return not self.takes_samples or not self.run.experiment.model.sees_padding

    def extract(self, waves: np.ndarray | Sequence[np.ndarray], **options: Any) -> Any:
        """Returns the folder's features of one clip or of a batch, and their attention mask."""
        if self.takes_samples:  # filled up, and with a mask, on demand only
            options = {"padding": True, "return_attention_mask": True} | options
        return self.extractor(waves, sampling_rate=self.run.experiment.sample_rate, return_tensors="np", **options)

    def features(self, extracted: Any) -> Float[np.ndarray, "row time features"]:
        """Returns the features of what `extract` gave, as our models take them."""
        return extracted["input_values"][..., None] if self.takes_samples else extracted["input_features"]

    def whole(self, clip: Clip) -> Any:
        """Returns the folder's features of a clip by itself, without filler at its end."""
        return self.extract(clip / np.float32(32768), pad_to_multiple_of=1)

    def by_clip(self, function: Callable[..., Any]) -> list[Any]:
        """Returns the rows of `function(params, batch)`, arrays of the run's outputs from samples, for each clip."""
        compiled, rows = jax.jit(function), {}
        for batch in in_batches(self.clips):
            outputs = jax.device_get(compiled(self.run.params, batch))
            for row, clip in enumerate(batch["example_id"].tolist()):
                rows[clip] = jax.tree.map(lambda array, row=row: array[row], outputs)
        return [rows[clip] for clip in range(len(self.clips))]

    def to_folder_ids(self, ids: Sequence[int] | Int[np.ndarray, " count"]) -> list[int]:
        """Returns the folder's ids for ids of the run."""
        return ids_in_folder(self.run.tokenizer, ids)

    def to_folder_rows(self, tokens: Int[np.ndarray, "row time"]) -> Int[np.ndarray, "row time"]:
        """Returns the folder's ids of padded rows; padding, which is masked, may be any of them."""
        if self.is_foreign:
            places = self.run.tokenizer.places
            tokens = np.where(tokens == PADDING, places.end, places.theirs[tokens])
        return tokens.astype(np.int64)

    @property
    def columns(self) -> Any:
        """Index of the run's logits that selects the folder's rows in the folder's order."""
        return self.run.tokenizer.places.ours if self.is_foreign else slice(None)


def synthetic_clips() -> list[Clip]:
    """A gliding tone in noise: every number of windows modulo 4, odd and even numbers of samples, one vector alone."""
    rng, clips = np.random.default_rng(0), []
    for windows, more in ((96, 0), (97, 1), (98, 77), (99, 159), (61, 3), (42, 80), (4, 11)):
        seconds = np.arange(400 + 160 * (windows - 1) + more) / DEFAULT_SAMPLE_RATE
        tone = np.sin(2 * np.pi * (150 + 900 * seconds) * seconds) * (1 + np.sin(20 * seconds))
        clips.append((5000 * tone + 400 * rng.standard_normal(len(seconds))).astype(np.int16))
    return clips


def in_float32(run: LoadedRun) -> LoadedRun:
    """Returns the run with float32 computation, attention that every machine has, and LoRA merged into its weights."""

    def plain(model: Any) -> Any:
        if isinstance(model, SpeechLMConfig):
            parts = {"encoder": plain(model.encoder), "transformer": plain(model.transformer)}
            return model.replace(**parts, lora=LoRA())
        if isinstance(model, EncoderDecoderConfig):
            return model.replace(encoder=plain(model.encoder), decoder=plain(model.decoder), lora=LoRA())
        model = model.replace(dtype="float32")
        return model.replace(attention="auto") if hasattr(model, "attention") else model

    model, params = run.experiment.model, run.params
    if isinstance(model, SpeechLMConfig | EncoderDecoderConfig):
        params, _ = merge(params, model.lora)
    return dataclasses.replace(run, params=params, experiment=run.experiment.replace(model=plain(model)))


def open_model(folder: Path, auto: str, architecture: str, rounded_to: str = "float32") -> Any:
    """Opens a folder's model in float32, from safetensors alone and without any code of the folder's.

    `auto` is the class that opens it, `architecture` the class that it should become. Its parameters are rounded to the
    type `rounded_to`.
    """
    options = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    opener = getattr(transformers, auto)
    model, info = opener.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    if type(model).__name__ != architecture:
        raise ValueError(f"it opens as {type(model).__name__}")
    # A text encoder may have been saved without the pooler, which nothing here reads.
    info = {key: [name for name in names if not str(name).startswith("pooler.")] for key, names in info.items()}
    if wrong := {key: sorted(map(str, names)) for key, names in info.items() if names}:
        raise ValueError(f"arrays are not those of the class: {wrong}")
    for parameter in model.parameters():  # not its buffers, such as rotary angles
        parameter.data = parameter.data.to(getattr(torch, rounded_to)).float()
    return model.eval()


def outputs(model: Any, inputs: Any) -> tuple[np.ndarray, ...]:
    """Returns a model's x-vectors and logits, its logits, or the last hidden states where it has no head."""
    computed = model(**{name: torch.tensor(value) for name, value in inputs.items()})
    if "start_logits" in computed:
        return (torch.stack([computed["start_logits"], computed["end_logits"]], -1).numpy(),)
    names = [name for name in ("embeddings", "logits") if name in computed] or ["last_hidden_state"]
    return tuple(computed[name].numpy() for name in names)


def compiled(make: functional.MakeModule, params: functional.Params, function: Callable) -> Callable:
    """Returns `function(module, *arrays)`, jitted, with `params` bound to the module that `make` declares."""
    graphdef = functional.declare(make).graphdef
    jitted = jax.jit(lambda params, *arrays: function(functional.bind(graphdef, params), *arrays))
    return lambda *arrays: jax.device_get(jitted(params, *arrays))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest absolute difference; infinite where a number is NaN."""
    return float(np.nan_to_num(np.abs(one - other), nan=np.inf, posinf=np.inf).max(initial=0))


def within(worst: float, of_what: str) -> str:
    """Describes the largest difference; raises `Differs` if it exceeds `TOLERANCE`."""
    result = f"{worst:.1e} at most, of {TOLERANCE:.0e} ({of_what})"
    if not worst <= TOLERANCE:
        raise Differs(result)
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turns off transformers' advice and progress bars."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
