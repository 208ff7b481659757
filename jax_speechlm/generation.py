"""`jax-speechlm generate`: continue texts with a trained language model."""

import json
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from jax_speechlm.decoding.generate import Beam, Sampling
from jax_speechlm.language_model import LanguageModel


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
) -> None:
    """Continues texts. What a prompt gives depends on the prompt, the settings and the seed, not on the other prompts.

    Args:
      checkpoint: a language model's run directory, or one of its checkpoints/<step> folders.
      prompts: beginnings of texts; "" begins a text anew.
      max_tokens: the most tokens added; the model may end the text before.
      samples: continuations of each prompt.
      sampling: how tokens are drawn; --temperature 0 takes the likeliest each time.
      beam_size: above 0: no drawing, but a search for the likeliest texts, this many of which are kept and printed.
      length_penalty: of the beam search: 0 compares texts by probability, 1 by its geometric mean over tokens.
      seed: of what is drawn.
      format: "text" prints prompt and continuation; "json" prints JSON lines with prompt, text, log_prob (nats),
        num_tokens and ended.
    """
    method = Beam(size=beam_size, length_penalty=length_penalty) if beam_size else sampling
    lm = LanguageModel.load(checkpoint)
    found = lm.generate(prompts, method, max_tokens=max_tokens, samples=samples, seed=seed)
    for prompt, continuations in zip(prompts, found, strict=True):
        for each in continuations:
            if format == "json":
                print(json.dumps({"prompt": prompt, **each._asdict()}, ensure_ascii=False), flush=True)
            else:
                print(prompt + each.text, flush=True)
