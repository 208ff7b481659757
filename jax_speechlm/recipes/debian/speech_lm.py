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
from jax_speechlm.recipes.common import CHARACTER_LM, on_cpu
from jax_speechlm.recipes.debian import en_joint
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    recognizer = en_joint.config()
    encoder = recognizer.model
    return recognizer.replace(
        data=recognizer.data.replace(shortest_first_epochs=0),
        objective=SpeechLM(),
        model=SpeechLMConfig(
            encoder=encoder,
            adapter=Stacking(frames=encoder.ffn_multiple, hidden_dim=CHARACTER_LM.dim, bias=False),
            transformer=CHARACTER_LM,
            lora=LoRA(rank=8, targets=("transformer/layers/attention",)),
        ),
        **on_cpu(3000, peak=1e-3, warmup_steps=200, eval_every=500),
    )
