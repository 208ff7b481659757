"""What is said in any dialogue, as templates in hassil's format, by language."""

from typing import Any

PHRASES: dict[str, dict[str, Any]] = {
    "en": {
        "yes": (
            "(yes|yeah|yep|sure|okay|right|correct) [please|thanks|(thank you)]",
            "(that is|that's) (right|correct)",
        ),
        "no": ("(no|nope|wrong) [thanks|(thank you)]", "(that is|that's) (not right|wrong)"),
        "repeat": ("(repeat|again|pardon) [please]", "[please] (repeat|say) (it|that) [again]", "what did you say"),
        "help": ("help [me] [please]", "what can i say"),
        "cancel": ("(cancel|(start (over|again))|forget it) [please]",),
        "lead": ("make it", "i (want|would like|said|meant)", "i'd like", "with", "a", "an", "the"),
        "tail": ("please", "instead"),
        "nth": tuple(
            (f"[the] {ordinal} [one|choice|option]", f"[number|option] {number}")
            for ordinal, number in (
                ("first", "one"),
                ("second", "two"),
                ("third", "three"),
                ("fourth", "four"),
                ("fifth", "five"),
                ("sixth", "six"),
                ("seventh", "seven"),
                ("eighth", "eight"),
                ("ninth", "nine"),
            )
        ),
    }
}
