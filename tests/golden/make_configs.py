"""Makes configs/*/*.json: every setting of every shipped experiment, so that a change of any shows in review.

python tests/golden/make_configs.py
"""

from pathlib import Path

from jax_speechlm.recipes import registry

FOLDER = Path(__file__).with_name("configs")


def texts() -> dict[str, str]:
    """The text of each experiment's golden file, by the experiment's name."""
    return {name: registry.load(name).model_dump_json(indent=1) + "\n" for name in registry.names()}


if __name__ == "__main__":
    made = texts()  # before any file goes, for a config may be broken
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.glob("*/*.json"):
        file.unlink()
    for name, text in made.items():
        file = FOLDER / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
