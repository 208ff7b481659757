"""`asterisk_tts/fastspeech2` that reads the hidden states of a frozen character LM with its characters.

jax-speechlm prepare asterisk-en queen-en
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pitch asterisk-en
jax-speechlm pretrain --config demo/lm --num-steps 2000 --run-dir runs/lm
jax-speechlm finetune --config asterisk_tts/fastspeech2_lm --from runs/lm --data.tokenizer runs/lm \\
  --run-dir runs/asterisk_fastspeech2_lm

The LM's 1.8 M parameters come from text alone. For LoRA add `--model.text-lm.lora.rank 8`.

Measured in the size of `demo/voice` by scripts/voice_pretraining.py, three seeds, which differ more than the LM does;
no LM has 94.7 %.

Result: asterisk-en test by Griffin-Lim, 600 steps: WER 130.1 %
"""

from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config, TextLM
from jax_speechlm.recipes.asterisk_tts import fastspeech2
from jax_speechlm.recipes.common import CHARACTER_LM
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    base = fastspeech2.config()
    return base.replace(
        model=FastSpeech2Config(text_lm=TextLM(transformer=CHARACTER_LM)),
        optimizer=base.optimizer.replace(frozen=("transformer",)),
    )
