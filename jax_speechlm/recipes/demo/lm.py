"""A character LM on English prose and the transcripts of asterisk-en and queen-en, for decoding with `demo/finetune`.

jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pretrain --config demo/lm --data.tokenizer runs/finetune --run-dir runs/lm

Takes the tokenizer of the recognizer whose hypotheses it scores. 1.78 M parameters, seed 0; 2 CPU cores: 3.1 minutes,
1.0 M characters. After 400 steps the dev loss is 1.071.

Result: dev loss on the transcripts of asterisk-en 1.222 nats a character
"""

from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.recipes.common import CHARACTER_LM, on_cpu
from jax_speechlm.recipes.experiment import Experiment, Text


def config() -> Experiment:
    return Experiment(
        data=Text(
            sets=("spoken-en", "asterisk-en", "queen-en"),
            weights=(0.75, 0.15, 0.1),
            dev_sets=("asterisk-en",),
            context=128,
            tokens_per_batch=4096,
        ),
        objective=CausalLM(),
        model=CHARACTER_LM,
        **on_cpu(250, peak=2e-3, warmup_steps=100, eval_every=125),
    )
