"""A speech-language model that transcribes: the conformer of `debian/en_joint`, the character LM of `demo/lm`.

jax-speechlm finetune --config debian/en_joint
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pretrain --config demo/lm --data.tokenizer runs/debian_en_joint --run-dir runs/lm
jax-speechlm finetune --config debian/speech_lm --data.tokenizer runs/lm --from runs/debian_en_joint --from runs/lm
jax-speechlm eval runs/debian_speech_lm --sets asterisk-en
jax-speechlm export runs/debian_speech_lm --to hf --out exported/debian_speech_lm

Encoder and LM are frozen except for LoRA in the LM's attention; 0.20 M parameters learn. The adapter has Voxtral's
form, the only one that can be exported.

Result: not yet measured
"""

from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.common import CHARACTER_LM, CONFORMER_144, MASKED_MEL
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech


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
        frontend=MASKED_MEL,
        model=SpeechLMConfig(
            encoder=CONFORMER_144,
            adapter=Stacking(frames=CONFORMER_144.ffn_multiple, hidden_dim=CHARACTER_LM.dim, bias=False),
            transformer=CHARACTER_LM,
            lora=LoRA(rank=8, targets=("transformer/layers/attention",)),
        ),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=200)),
        num_steps=3000,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=500, checkpoint_every=500),
    )
