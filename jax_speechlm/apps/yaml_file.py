"""YAML files of applications, with the lines of their parts for messages."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from data_pipelines.core.errors import DataError
from jax_speechlm.core.config import Config

C = TypeVar("C", bound=Config)

Place = tuple[str | int, ...]
"""Keys and indexes of a part, from the top."""

_LARGEST = 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class YamlFile:
    """A YAML file that holds an object.

    Attributes:
      lines: of its parts, by place.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[Place, int]

    @classmethod
    def read(cls, name: str | Path, shipped: Path) -> "YamlFile":
        """Reads a file.

        Args:
          name: its path, or the name of a shipped one.
          shipped: folder of the shipped ones.

        Raises:
          DataError: it cannot be read, or is no object in YAML.
        """
        path = Path(name)
        if not path.exists() and (shipped / f"{name}.yaml").exists():
            path = shipped / f"{name}.yaml"
        try:
            if path.stat().st_size > _LARGEST:
                raise DataError(f"{path}: is larger than {_LARGEST} bytes")
            text = path.read_text(encoding="utf-8")
            values = yaml.safe_load(text)
            lines = dict(_lines(yaml.compose(text, yaml.SafeLoader)))
        except OSError as error:
            names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
            raise DataError(f"{path}: cannot be read ({error.strerror}); shipped ones are {names}") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, line 1: should be an object, lines of `name: value`")
        return cls(path, values, lines)

    def validated(self, kind: type[C]) -> C:
        """Returns the values as a config. Raises `DataError` with file and line if they are not valid."""
        try:
            return kind.model_validate(dict(self.values))
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise self.error(first["loc"], first["msg"].removeprefix("Value error, ")) from error

    def error(self, place: Place, what: str) -> DataError:
        """Returns an error at a part of the file."""
        return DataError(f"{self.where(place)}: {what}")

    def where(self, place: Place) -> str:
        """Returns file and line of a part, or of the next larger part that has a line."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.path}, line {self.lines.get(place, 1)}"


def _lines(node: yaml.Node | None, place: Place = ()) -> Iterator[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line + 1
            yield from _lines(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*place, number), value.start_mark.line + 1
            yield from _lines(value, (*place, number))
