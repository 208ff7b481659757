"""The model of `asterisk_tts/fastspeech2` on five voices, one a language, with an embedding of each; then one of them.

jax-speechlm prepare asterisk-en asterisk-es asterisk-fr asterisk-it asterisk-ru
jax-speechlm pitch asterisk-en asterisk-es asterisk-fr asterisk-it asterisk-ru
jax-speechlm finetune --config asterisk_tts/languages --run-dir runs/voices
jax-speechlm finetune --config asterisk_tts/languages --from runs/voices --init-from.0.groups acoustic aligner \\
  --data.tokenizer runs/voices --data.sets asterisk-en --run-dir runs/asterisk_fastspeech2_languages

Does speech of other voices in other languages help where one voice has 20 minutes? The second run is compared with
`asterisk_tts/fastspeech2`, which has the same number of steps from random parameters.

Measured in the size of `demo/voice` by scripts/voice_pretraining.py, three seeds: no better than as many steps on the
one voice (39.9 %).

Result: asterisk-en test by Griffin-Lim, 600 steps after 600 on five: WER 42.3 %
"""

from jax_speechlm.recipes.asterisk_tts import fastspeech2
from jax_speechlm.recipes.experiment import Experiment

SPEAKERS = ("en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")
"""Voices of the packages."""


def config() -> Experiment:
    one = fastspeech2.config()
    sets = tuple(f"asterisk-{language}" for language in ("en", "es", "fr", "it", "ru"))
    return one.replace(data=one.data.replace(sets=sets), objective=one.objective.replace(classes=SPEAKERS))
