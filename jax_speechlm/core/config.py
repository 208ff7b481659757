"""Base class of all configurations: frozen, validated, and preserved by a round trip through JSON."""

import difflib
import json
from typing import Any, ClassVar, TypeVar

import pydantic

from data_pipelines.core.paths import AnyPath

Self = TypeVar("Self", bound="Config")  # typing.Self cannot be checked at run time, as the tests do


class Config(pydantic.BaseModel):
    """A frozen record of settings.

    Unknown keys are errors that suggest the nearest known key. Configs with equal values are equal and hash equally.
    `model_dump_json` writes a config and `from_json` reads it.
    """

    OLD_NAMES: ClassVar[dict[str, str]] = {}
    """Maps names of earlier versions to current names, so that their checkpoints and `config.json` files still open."""

    ADDED: ClassVar[dict[str, Any]] = {}
    """Settings with the values that they had before they existed, for records of earlier versions that lack them alone
    and would otherwise get other defaults."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @pydantic.model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        """Renames settings of earlier versions and rejects unknown keys, suggesting the nearest known one."""
        if isinstance(values, dict):
            for old in values.keys() & cls.OLD_NAMES.keys():
                if (new := cls.OLD_NAMES[old]) in values:
                    raise ValueError(f"{cls.__name__}: {old!r} and {new!r} are two names of one setting: keep {new!r}")
            values = {cls.OLD_NAMES.get(key, key): value for key, value in values.items()}
            for key in values:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.4)
                    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(cls.model_fields)}"
                    raise ValueError(f"{cls.__name__} has no setting {key!r}{hint}")
            if cls.ADDED and cls.model_fields.keys() - values.keys() == cls.ADDED.keys():
                values |= cls.ADDED
        return values

    @classmethod
    def from_json(cls: type[Self], text: str | bytes) -> Self:
        """Parses the output of `model_dump_json`.

        Raises:
          pydantic.ValidationError: a value is of the wrong type or out of range, or a key is unknown.
          ValueError: the text is not JSON, or contains a setting twice.
        """
        return cls.model_validate(json.loads(text, object_pairs_hook=_distinct))

    @classmethod
    def read(cls: type[Self], path: AnyPath) -> Self:
        """Reads a JSON file. Raises the errors of `from_json` as `ValueError` with the file's name."""
        try:
            return cls.from_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def replace(self: Self, **changes: Any) -> Self:
        """Returns a validated copy with some settings changed."""
        return type(self).model_validate({name: getattr(self, name) for name in type(self).model_fields} | changes)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    settings = dict(pairs)
    if len(settings) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the setting {twice!r} is given twice")
    return settings
