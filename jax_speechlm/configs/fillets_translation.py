"""Czech and Dutch speech to English text: fillets-cs and fillets-nl, an encoder of their own and a character LM.

jax-speechlm finetune --config fillets_translation --data.tokenizer runs/translation/lm \\
  --from runs/translation/ctc --from runs/translation/lm

`scripts/fillets_translation.py` trains what it starts from, and compares it with a cascade. One CPU core: 16
minutes, seed 0. Test: BLEU 0.2, chrF 14.7 from Czech and 15.3 from Dutch: it translates nothing; docs/results.md says
why.
"""

from jax_speechlm.configs import fillets_ctc, four_way_speech_lm
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    transcribing = four_way_speech_lm.config()
    return transcribing.replace(
        data=fillets_ctc.config().data.replace(shortest_first_epochs=0),
        objective=SpeechLM(task="translate", freeze=("encoder",)),
        num_steps=1500,
    )
