"""Sets of speech that `prepare` knows by name, and the Debian packages that contain them."""

import functools
from difflib import get_close_matches
from pathlib import Path

from data_pipelines.audio.clips import Corpus
from data_pipelines.core.errors import DataError
from data_pipelines.sources import asterisk, debian, fillets, queen, tuxpaint

# A text that does not match its audio has an implausible rate. Telephone prompts include single letters with pauses.
_CHARACTERS_PER_SECOND = (3.0, 24.0)
_PROMPT_CHARACTERS_PER_SECOND = (1.0, 24.0)

NAMES = (
    *(f"asterisk-{language}" for language in asterisk.LICENCES),
    "queen-en",
    *(f"fillets-{language}" for language in fillets.LANGUAGES),
    *(f"tuxpaint-{language}" for language in tuxpaint.LANGUAGES),
    "tuxpaint-sounds",
)


def debian_source(name: str, cache: Path) -> Corpus:
    """Fetches the packages of one of `NAMES` into `cache` (see `debian.fetch`) and describes their set.

    Returns:
      The set, whose clips are read when they are needed.

    Raises:
      DataError: the name is unknown, or a package cannot be fetched.
    """
    if name not in NAMES:
        near = "".join(f" Did you mean {match}?" for match in get_close_matches(name, NAMES, n=1))
        raise DataError(f"no data set is called {name!r}.{near} Known: {', '.join(NAMES)}; your own needs --manifest.")
    builder, _, config = name.partition("-")
    rates = _CHARACTERS_PER_SECOND
    match builder:
        case "asterisk":
            packages, licence = asterisk.packages(config), asterisk.LICENCES[config]
            parse, rates = functools.partial(asterisk.clips, config), _PROMPT_CHARACTERS_PER_SECOND
        case "queen":
            packages, parse, licence = (queen.PACKAGE,), queen.clips, queen.LICENCE
            builder, config = "queen_en", ""
        case "fillets":
            packages, licence = (fillets.TEXT_PACKAGE, fillets.audio_package(config)), fillets.LICENCE
            parse = functools.partial(fillets.clips, config)
        case _:
            packages, licence = (tuxpaint.PACKAGE,), tuxpaint.LICENCE
            parse = functools.partial(tuxpaint.clips, config)
            if config == "sounds":
                parse, rates = tuxpaint.sounds, None  # without speech
    fetched = [debian.fetch(package, cache) for package in packages]
    return Corpus(
        name=name,
        builder=builder,
        config=config,
        licence=licence,
        origin={package.name: package.version for package in fetched},
        items=lambda: parse(*(package.root for package in fetched)),
        characters_per_second=rates,
    )
