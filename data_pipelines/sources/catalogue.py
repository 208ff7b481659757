"""Sets of speech that `prepare` knows by name, and the Debian packages that contain them."""

import functools
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path

from data_pipelines.audio.clips import Clip, Corpus, Dropped
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
    family, _, language = name.partition("-")
    match family:
        case "asterisk":
            packages = asterisk.packages(language)
            return _source(
                name,
                cache,
                packages,
                functools.partial(asterisk.clips, language),
                config=language,
                licence=asterisk.LICENCES[language],
                characters_per_second=_PROMPT_CHARACTERS_PER_SECOND,
            )
        case "queen":
            return _source(name, cache, (queen.PACKAGE,), queen.clips, builder="queen_en", licence=queen.LICENCE)
        case "fillets":
            packages = fillets.TEXT_PACKAGE, fillets.audio_package(language)
            parse = functools.partial(fillets.clips, language)
            return _source(name, cache, packages, parse, config=language, licence=fillets.LICENCE)
        case _ if language == "sounds":
            parse, rates = tuxpaint.sounds, None  # without speech
        case _:
            parse, rates = functools.partial(tuxpaint.clips, language), _CHARACTERS_PER_SECOND
    packages = (tuxpaint.PACKAGE,)
    return _source(name, cache, packages, parse, config=language, licence=tuxpaint.LICENCE, characters_per_second=rates)


def _source(
    name: str,
    cache: Path,
    packages: tuple[str, ...],
    parse: Callable[..., Iterator[Clip | Dropped]],
    *,
    licence: str,
    builder: str = "",
    config: str = "",
    characters_per_second: tuple[float, float] | None = _CHARACTERS_PER_SECOND,
) -> Corpus:
    fetched = [debian.fetch(package, cache) for package in packages]
    return Corpus(
        name=name,
        builder=builder or name.partition("-")[0],
        config=config,
        licence=licence,
        origin={package.name: package.version for package in fetched},
        items=lambda: parse(*(package.root for package in fetched)),
        characters_per_second=characters_per_second,
    )
