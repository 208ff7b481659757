"""Pronunciation of English words that no lexicon has, by rules.

The symbols are those of the CMU Pronouncing Dictionary (ARPAbet): vowels end with their stress, 1 primary, 2 secondary,
0 none. A word is first taken apart into words of the lexicon (an inflected form, a prefix, a compound); the letters of
other words are read from left to right by the first entry of a table that fits, in the manner of Elovitz et al. 1976
but with far fewer entries.
"""

import re
from collections.abc import Mapping, Sequence

RULES_VERSION = 1
"""Version of the rules; part of the fingerprint of a tokenizer."""

VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())  # noqa: SIM905
_HISSING = frozenset(["S", "Z", "SH", "ZH", "CH", "JH"])
_VOICELESS = frozenset(["P", "T", "K", "F", "TH"])
_LONGEST_WORD = 50  # letters
_SHORTEST_PART = 4  # letters, of a compound's parts and after a prefix
_PREFIXES = {"un": "AH0 N", "re": "R IY0", "pre": "P R IY0", "non": "N AA0 N", "mis": "M IH0 S", "dis": "D IH0 S"}

# Letters, what must follow (and precede, before "_"), sounds. The first entry that fits is taken.
_RULES = """
tion $ SH AH N|tions $ SH AH N Z|ssion $ SH AH N|sion $ ZH AH N|cious $ SH AH S|tious $ SH AH S|cial $ SH AH L
tial $ SH AH L|ture $ CH ER|eigh - EY|ought - AO T|aught - AO T|ough - OW|augh - AO|igh - AY|tch - CH|sch - SH
dge - JH|^kn - N|^gn - N|^wr - R|^ps - S|^pn - N|^x - Z|^wh - W|ch [rl] K|ch - CH|sh - SH|th - TH|ph - F|ck - K
ng [aeiouy] NG G|ng - NG|nk - NG K|nx - NG K S|qu [aeiouy] K W|q - K|^gh - G|gh - |mb $ M|mn $ M|rh - R
sc [eiy] S|cc [eiy] K S|x - K S|eer - IH R|ear - IH R|air - EH R|are $ EH R|ire $ AY ER|ore $ AO R|oor - AO R
our $ AO R|ure $ Y UH R|ee - IY|ea - IY|oo - UW|ou - AW|ow $ OW|ow - AW|oi - OY|oy - OY|ai - EY|ay - EY|au - AO
aw - AO|ei - IY|ey $ IY|ey - EY|ie $ IY|ie - IY|eu - UW|ew - UW|oa - OW|oe $ OW|ue $ UW|ui - UW|ia - IY AH
io - IY OW|ar - AA R|er - ER|ir - ER|ur - ER|or - AO R|a [^aeiouyrwx]e$ EY|e [^aeiouyrwx]e$ IY|i [^aeiouyrwx]e$ AY
o [^aeiouyrwx]e$ OW|u [^aeiouyrwx]e$ UW|y [^aeiouyrwx]e$ AY|a [^aeiouyrwx]ing$ EY|a [^aeiouyrwx]e[dr]$ EY|a $ AH|i $ IY
o $ OW|u $ UW|o [^aeiouyrwx][aeiouy] OW|u [^aeiouyrwx][aeiouy] UW|a - AE|e - EH|i - IH|o - AA|u - AH|^y [aeiou] Y|y $ IY
y - IH|c [eiy] S|c - K|g [eiy] JH|g - G|j - JH|b - B|d - D|f - F|h - HH|k - K|l - L|m - M|n - N|p - P|r - R|s - S
t - T|v - V|w - W|z - Z
"""


def _compiled() -> dict[str, list[tuple[str, bool, re.Pattern[str], tuple[str, ...]]]]:
    """Returns by first letter: letters, whether they must begin the word, pattern of what follows, sounds."""
    table: dict[str, list] = {}
    for rule in _RULES.replace("\n", "|").strip("|").split("|"):
        letters, follows, *sounds = rule.split(" ")
        at_start, letters = letters.startswith("^"), letters.lstrip("^")
        pattern = re.compile("" if follows == "-" else follows)
        table.setdefault(letters[0], []).append((letters, at_start, pattern, tuple(filter(None, sounds))))
    return table


_TABLE = _compiled()


def pronounce(word: str, lexicon: Mapping[str, str]) -> list[str]:
    """Returns the sounds of a word of the letters a to z and apostrophes.

    Args:
      lexicon: sounds by word, separated by spaces.
    """
    if word in lexicon:
        return lexicon[word].split()
    if len(word) > _LONGEST_WORD:  # no word; in parts, so that it takes linear time
        parts = (word[start : start + _LONGEST_WORD] for start in range(0, len(word), _LONGEST_WORD))
        return [sound for part in parts for sound in by_letters(part)]
    return _inflected(word, lexicon) or _prefixed(word, lexicon) or _compound(word, lexicon) or by_letters(word)


def _inflected(word: str, lexicon: Mapping[str, str]) -> list[str]:
    """Returns the sounds of a form of a word of the lexicon in s, 's, ed, ing, er, ly or ness; empty if it is none."""
    for ending in ("'s", "s'", "s", "ed", "ing", "er", "ly", "ness"):
        if not word.endswith(ending) or len(word) < len(ending) + 3:
            continue
        stem = word[: -len(ending)]
        doubled = len(stem) > 3 and stem[-1] == stem[-2]
        stems = [stem] if ending in ("'s", "s'", "ly", "ness") else [stem, *([f"{stem}e"] if ending != "s" else [])]
        stems += [stem[:-1]] if doubled and ending in ("ed", "ing", "er") else []
        stems += [f"{stem[:-2]}y"] if ending == "s" and stem.endswith("ie") else []
        stems += [f"{stem[:-1]}y"] if ending in ("ed", "er", "ly", "ness") and stem.endswith("i") else []
        stems += [stem[:-1]] if ending == "s" and stem.endswith("e") else []
        for base in stems:
            if base in lexicon:
                sounds = lexicon[base].split()
                return [*sounds, *_ending(ending, sounds[-1])]
    return []


def _ending(ending: str, last: str) -> list[str]:
    if "s" in ending and ending != "ness":
        return ["IH0", "Z"] if last in _HISSING else ["S"] if last in _VOICELESS else ["Z"]
    if ending == "ed":
        voiceless = last in _VOICELESS or last in ("S", "SH", "CH")
        return ["IH0", "D"] if last in ("T", "D") else ["T"] if voiceless else ["D"]
    return {"ing": ["IH0", "NG"], "er": ["ER0"], "ly": ["L", "IY0"], "ness": ["N", "AH0", "S"]}[ending]


def _prefixed(word: str, lexicon: Mapping[str, str]) -> list[str]:
    """Returns the sounds of a word of the lexicon, or a form of one, after a prefix; empty if it is none."""
    for prefix, sounds in _PREFIXES.items():
        rest = word.removeprefix(prefix)
        if len(rest) >= _SHORTEST_PART and rest != word:
            whole = lexicon[rest].split() if rest in lexicon else _inflected(rest, lexicon)
            if whole:
                return [*sounds.split(), *whole]
    return []


def _compound(word: str, lexicon: Mapping[str, str]) -> list[str]:
    """Returns the sounds of a word that consists of two words of the lexicon; empty if it does not."""
    for cut in range(len(word) - _SHORTEST_PART, _SHORTEST_PART - 1, -1):
        first, second = word[:cut], word[cut:]
        if first in lexicon and second in lexicon:
            return [*lexicon[first].split(), *lexicon[second].replace("1", "2").split()]
    return []


def by_letters(word: str) -> list[str]:
    """Returns the sounds of a word by the table alone; those of a word without a vowel by the names of its letters."""
    word = word.replace("'", "")
    if not re.search("[aeiouy]", word):
        return [sound for letter in word for sound in _NAMES[letter].split()]
    sounds: list[str] = []
    position = 0
    while position < len(word):
        letters, rule_sounds = _match(word, position)
        end = position + len(letters)
        if letters == "s" and _is_voiced(word, position, sounds):
            rule_sounds = ("Z",)
        sounds += rule_sounds
        repeated = len(letters) == 1 and letters not in "aeiouy" and word[end : end + 1] == letters
        position = end + repeated
    return _stressed(sounds, word)


def _match(word: str, position: int) -> tuple[str, Sequence[str]]:
    if word[position:] in ("e", "es") and position > 1 and re.search("[aeiouy]", word[:position]):
        if word[position - 1] == "l" and word[position - 2] not in "aeiouyl":
            return "e", ()  # the vowel of "table" is that of its l
        if word[position:] == "e":
            return "e", ()
    if word[position:] in ("le", "les") and position > 1 and word[position - 1] not in "aeiouyl":
        return "l", ("AH", "L")
    for letters, at_start, follows, sounds in _TABLE[word[position]]:
        is_here = word.startswith(letters, position) and (position == 0 or not at_start)
        if is_here and follows.match(word, position + len(letters)):
            return letters, sounds
    raise ValueError(f"no rule for {word[position]!r}")


def _is_voiced(word: str, position: int, sounds: Sequence[str]) -> bool:
    """Returns whether an s is Z: at the end after a voiced sound, and between vowels."""
    if not sounds or word[position - 1 : position] == "s" or word[position + 1 : position + 2] == "s":
        return False
    if position + 1 == len(word):
        return sounds[-1] not in _VOICELESS and word[position - 1] not in "sui"
    return word[position - 1] in "aeiouy" and word[position + 1] in "aeiouy"


def _stressed(sounds: list[str], word: str) -> list[str]:
    """Adds stress: on the vowel before "tion" and the like, otherwise on the first; short vowels after it are AH."""
    vowels = [index for index, sound in enumerate(sounds) if sound in VOWELS]
    if not vowels:
        return sounds
    before_ending = len(vowels) > 1 and re.search("(?:[ts]ions?|ic|[ct]ial|[ct]ious)$", word)
    main = vowels[-2] if before_ending else vowels[0]
    result = list(sounds)
    for index in vowels:
        sound = sounds[index]
        if index == main:
            result[index] = f"{sound}1"
        elif index > main and sound in ("AE", "EH", "AA") and index != len(sounds) - 1:
            result[index] = "AH0"
        else:
            result[index] = f"{sound}{0 if sound in ('AH', 'ER', 'IH', 'IY', 'OW') else 2}"
    return result


_NAMES = {
    "b": "B IY1", "c": "S IY1", "d": "D IY1", "f": "EH1 F", "g": "JH IY1", "h": "EY1 CH", "j": "JH EY1", "k": "K EY1",
    "l": "EH1 L", "m": "EH1 M", "n": "EH1 N", "p": "P IY1", "q": "K Y UW1", "r": "AA1 R", "s": "EH1 S", "t": "T IY1",
    "v": "V IY1", "w": "D AH1 B AH0 L Y UW0", "x": "EH1 K S", "z": "Z IY1",
}  # fmt: skip
