"""Intent and slots of commands to a coffee machine, from audio without transcripts, conformer of width 144.

jax-speechlm prepare --manifest coffee/manifest.jsonl --name coffee
jax-speechlm finetune --config coffee/intent --run-dir runs/coffee
jax-speechlm eval runs/coffee --sets coffee

The encoder is that of `debian/en_streaming`, from which --from may start. From scratch, two CPU cores beside other
work: 11.4 minutes, 2.4 h of audio seen (3.2 passes over 309 clips at three speeds), seed 0: too little to learn what
a slot sounds like; `coffee/intent_whisper` learns more. The clips do not name their speakers, who may stand in
several splits.

Result: coffee test, 96 commands, from scratch: slot F1 4.2 % [1.8, 6.9], all right 0.0 % [0.0, 3.8]
"""

from jax_speechlm.objectives.heads.intent import Intent, Slot
from jax_speechlm.recipes.common import CONFORMER_144, MASKED_MEL, MEL, SPEEDS, on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment

AMOUNTS = ("", "a bit of", "a little bit of", "a lot of", "lots of", "some")
MILKS = ("almond milk", "cream", "milk", "skim milk", "soy milk", "whole milk")
SUGARS = ("brown sugar", "sugar", "sweetener")
DRINKS = ("americano", "cappuccino", "coffee", "drip coffee", "espresso", "house coffee", "iced coffee", "iced mocha")
SIZES = ("eight ounce", "large", "medium", "sixteen ounce", "small", "twelve ounce", "twenty ounce")


def amounts_of(things: tuple[str, ...]) -> tuple[str, ...]:
    """Returns things with every amount, and without."""
    return tuple(f"{amount} {thing}".strip() for thing in things for amount in AMOUNTS)


SLOTS = (
    Slot(name="coffeeDrink", values=(*DRINKS, "latte", "mocha")),
    Slot(name="milkAmount", values=amounts_of(MILKS)),
    Slot(name="numberOfShots", values=("double shot", "single shot", "triple shot")),
    Slot(name="roast", values=("dark roast", "light roast", "medium roast")),
    Slot(name="size", values=SIZES),
    Slot(name="sugarAmount", values=amounts_of(SUGARS)),
)


def config() -> Experiment:
    return Experiment(
        data=small_batches(
            sets=("coffee",), seconds_per_batch=64, row_seconds=(16.0,), max_seconds=16.0, speeds=SPEEDS
        ),
        objective=Intent(intents=("orderDrink",), slots=SLOTS),
        frontend=MASKED_MEL.replace(mel=MEL.replace(normalize="running")),  # as debian/en_streaming
        model=CONFORMER_144,
        **on_cpu(150, peak=1e-3, warmup_steps=60, eval_every=150),
    )
