"""WavTokenizer codec at 50 codes a second on the one voice of asterisk-en, small enough for two CPU cores.

jax-speechlm prepare asterisk-en
jax-speechlm pretrain --config asterisk_tts/codec --run-dir runs/codec
jax-speechlm eval runs/codec --sets asterisk-en
jax-speechlm units label runs/codec --sets asterisk-en
jax-speechlm export runs/codec --out exported/codec

One codebook of 512 codes, 450 bits a second; parts of a second, by the distances of spectra alone.

`--num-steps 1000` took 33 minutes of 2 cores beside other work, seed 0; 263 codes are used.

Result: copies of asterisk-en test, 1,000 steps: WER 312.8 % [163.7, 513.0], MCD 6.90 dB [6.74, 7.04]
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.objectives.tts.codec import CODEBOOK, Codec
from jax_speechlm.optim.optimizers import Group, Optimizer, WarmupCosine
from jax_speechlm.recipes.common import bucketed
from jax_speechlm.recipes.experiment import Experiment, LoopConfig

MODEL = WavTokenizerConfig(
    num_filters=8, strides=(2, 4, 5, 8), latent_dim=64, dim=128, ffn_dim=384, num_layers=4, num_groups=16, dropout=0.0
)


def config() -> Experiment:
    return Experiment(
        data=bucketed(sets=("asterisk-en",), num_buckets=3, max_seconds=12.0),
        objective=Codec(),
        frontend=FrontEnd(mel=SynthesisMel(hop=MODEL.hop)),
        model=MODEL,
        optimizer=Optimizer(
            schedule=WarmupCosine(peak=1e-3, warmup_steps=200),
            b2=0.99,
            ema_decay=0.998,
            groups=(Group.assigned(CODEBOOK),),
        ),
        num_steps=10_000,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=1000, checkpoint_every=1000),
    )
