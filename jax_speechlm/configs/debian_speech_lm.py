"""A speech-language model that transcribes: the conformer of `debian_en_joint`, the character LM of `demo_lm`.

jax-speechlm finetune --config debian_en_joint
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pretrain --config demo_lm --data.tokenizer runs/debian_en_joint --run-dir runs/lm
jax-speechlm finetune --config debian_speech_lm --data.tokenizer runs/lm --from runs/debian_en_joint --from runs/lm
jax-speechlm eval runs/debian_speech_lm --sets asterisk-en
jax-speechlm export runs/debian_speech_lm --to hf --out exported/debian_speech_lm

Encoder and LM stay as they are, but for LoRA in the LM's attention; 0.20 M parameters learn. The adapter is
of the one form that can be exported, Voxtral's. Not yet measured.
"""

from jax_speechlm.configs import demo_lm
from jax_speechlm.configs.debian_en_joint import FRONT_END, MODEL
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech

LANGUAGE_MODEL = demo_lm.config().model


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=("asterisk-en", "queen-en"),
            seconds_per_batch=64,
            num_buckets=6,
            batch_multiple=1,
            max_seconds=16.0,
            speeds=(0.9, 1.0, 1.1),
        ),
        objective=SpeechLM(),
        frontend=FRONT_END,
        model=SpeechLMConfig(
            encoder=MODEL,
            adapter=Stacking(frames=MODEL.ffn_multiple, hidden_dim=LANGUAGE_MODEL.dim, bias=False),
            transformer=LANGUAGE_MODEL,
            lora=LoRA(rank=8, targets=("transformer/layers/attention",)),
        ),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=200)),
        num_steps=3000,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=500, checkpoint_every=500),
    )
