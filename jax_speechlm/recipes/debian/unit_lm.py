"""A unit LM on asterisk-en and queen-en: speech, text, both interleaved by characters; from a text LM or from scratch.

jax-speechlm units fit --sets asterisk-en queen-en --out data/units-100 --num-units 100
jax-speechlm units label data/units-100 --sets asterisk-en queen-en
jax-speechlm align runs/debian_en_joint --sets asterisk-en queen-en --split train --format index
jax-speechlm pretrain --config demo/lm --data.tokenizer runs/debian_en_joint --run-dir runs/lm
jax-speechlm pretrain --config debian/unit_lm --data.tokenizer runs/lm --from runs/lm
jax-speechlm eval runs/debian_unit_lm --sets asterisk-en queen-en --text-sets spoken-en

The model of `demo/lm` with embeddings for the units; without --from it starts from scratch. One CPU core: 11 minutes,
3.3 M tokens. From scratch, seeds 0 and 1: perplexity 13.69 and 13.65 a unit, 2.24 bits a byte of text. The text LM
helps with text alone.

Result: test, seeds 0 and 1: perplexity 13.65 and 13.68 a unit, 2.03 bits a byte of text
"""

from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.recipes.common import CHARACTER_LM, on_cpu
from jax_speechlm.recipes.experiment import Experiment, UnitText


def config() -> Experiment:
    return Experiment(
        data=UnitText(
            sets=("asterisk-en", "queen-en"),
            text_sets=("spoken-en",),
            units="data/units-100",
            spoken=0.5,
            text=0.2,
            interleaved=0.3,
            draws=4,
            context=256,
            tokens_per_batch=4096,
        ),
        objective=UnitLM(num_units=100),
        model=CHARACTER_LM,
        **on_cpu(800, peak=1e-3, warmup_steps=100, eval_every=400),
    )
