"""CTC on asterisk-en alone, from the model that `debian/en_joint` trained on asterisk-en and queen-en.

jax-speechlm finetune --config debian/en_asterisk --from runs/debian_en_joint --init-from.0.groups encoder head
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm train-ngram --sets spoken-en asterisk-en queen-en --order 3 --out data/words-3.arpa
jax-speechlm eval runs/debian_en_asterisk --sets asterisk-en --lm data/words-3.arpa

One CPU core: 10 minutes, 7.6 hours of audio seen (25 passes), seed 0. Test: 60 clips, 352 words, normalizer basic.
Greedy CER 15.9 % [9.5, 22.5]; prefix beam 16 with the word 3-gram, weights tuned on dev: CER 14.2 % [7.3, 21.5]; also
ranked by `demo/lm` of 400 steps: WER 31.8 % [16.9, 46.9]. pocketsphinx, with its pretrained model and language model,
has 34.4 % on the same clips.

Result: asterisk-en test WER 45.2 % [29.0, 61.1]; with a word 3-gram 33.0 % [18.0, 48.2]
"""

from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.debian import en_joint
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    joint = en_joint.config()
    changes = {"sets": ("asterisk-en",), "seconds_per_batch": 48, "max_seconds": 24.0, "shortest_first_epochs": 0}
    return joint.replace(data=joint.data.replace(**changes), **on_cpu(800, peak=1e-3, warmup_steps=50, eval_every=200))
