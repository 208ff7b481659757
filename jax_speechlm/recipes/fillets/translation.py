"""Czech and Dutch speech to English text on fillets-cs and fillets-nl: encoder, adapter and a character LM.

jax-speechlm finetune --config fillets/translation --data.tokenizer runs/translation/lm \\
  --from runs/translation/ctc --from runs/translation/lm

`scripts/fillets_translation.py` trains the two runs that it starts from, and compares it with a cascade. One CPU core:
16 minutes, seed 0. It does not translate; docs/results.md gives the reasons.

Result: test BLEU 0.2; chrF 14.7 from Czech, 15.3 from Dutch
"""

from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.common import CHARACTER_LM
from jax_speechlm.recipes.experiment import Experiment, LoopConfig
from jax_speechlm.recipes.fillets import ctc


def config() -> Experiment:
    recognizer = ctc.config()
    return recognizer.replace(
        data=recognizer.data.replace(shortest_first_epochs=0),
        objective=SpeechLM(task="translate", freeze=("encoder",)),
        model=SpeechLMConfig(
            encoder=recognizer.model,
            adapter=Stacking(frames=2, hidden_dim=384),
            transformer=CHARACTER_LM,
        ),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=100)),
        num_steps=1500,
        loop=LoopConfig(log_every=100, eval_every=500, checkpoint_every=500),
    )
