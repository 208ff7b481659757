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

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.common import CONFORMER_144, MASKED_MEL
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=("asterisk-en",),
            seconds_per_batch=48,
            num_buckets=6,
            batch_multiple=1,
            max_seconds=24.0,
            speeds=(0.9, 1.0, 1.1),
        ),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL,
        model=CONFORMER_144,
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=50)),
        num_steps=800,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=200, checkpoint_every=200),
    )
