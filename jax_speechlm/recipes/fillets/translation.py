"""Czech and Dutch speech to English text on fillets-cs and fillets-nl: encoder, adapter and a character LM.

jax-speechlm finetune --config fillets/translation --data.tokenizer runs/translation/lm \\
  --from runs/translation/ctc --from runs/translation/lm

`scripts/fillets_translation.py` trains the two runs that it starts from, and compares it with a cascade. One CPU core:
16 minutes, seed 0. It does not translate; docs/results.md gives the reasons.

Result: test BLEU 0.2; chrF 14.7 from Czech, 15.3 from Dutch
"""

from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.recipes.common import SPEECH_LM_XS, on_cpu
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.fillets import ctc


def config() -> Experiment:
    recognizer = ctc.config()
    return recognizer.replace(
        data=recognizer.data.replace(shortest_first_epochs=0),
        objective=SpeechLM(task="translate", freeze=("encoder",)),
        model=SPEECH_LM_XS,
        **on_cpu(1500, peak=1e-3, warmup_steps=100, log_every=100, eval_every=500),
    )
