"""Parser of optimised HLO text: the instructions of a compiled program.

XLA has no stable interface to a program's instructions, but its own tools exchange this text. Read are
names, opcodes, shapes, operands and the raw attributes, for `planning.costs`.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
"""Bits of the element types whose name does not end with them."""


class Shape(NamedTuple):
    """One array: its element type, its sizes, and whether it is in the device's main memory.

    `in_hbm` is False for arrays in on-chip memory (a layout's memory space is not 0).
    """

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def size(self) -> int:
        """Returns the number of elements."""
        total = 1
        for dim in self.dims:
            total *= dim
        return total

    @property
    def bytes(self) -> int:
        if (bits := BITS.get(self.dtype)) is None:
            # f32, s8, u4, f8e4m3fn: the first number is the width
            bits = int(re.search(r"\d+", self.dtype).group())
        return -(-self.size * bits // 8)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in the module.
      opcode: XLA's name: "dot", "fusion", "all-gather-start", ...
      shapes: the arrays of the result, a tuple's flattened.
      operands: names of its operands.
      argument: the raw text between the parentheses: a constant's value, a parameter's number.
      attributes: the raw text after the parentheses.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    def attribute(self, name: str) -> str | None:
        """Returns an attribute's text up to the next comma; if it is in brackets, up to their end. None if absent."""
        match = re.search(rf"(?:^|[ ,{{]){re.escape(name)}=", self.attributes)
        if not match:
            return None
        rest = self.attributes[match.end() :]
        if rest[:1] in "{[(":
            return rest[: _closing(rest, 0) + 1]
        return re.match(r"[^,\s]*", rest).group()

    @property
    def bytes(self) -> int:
        """Returns the bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in the order of their schedule.

    Attributes:
      instructions: by name.
      root: name of the instruction with the computation's value.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def users(self, name: str) -> list[Instruction]:
        """Returns the instructions that take `name` as an operand."""
        return [instruction for instruction in self if name in instruction.operands]

    def uses(self, name: str) -> Iterator[tuple[str, Instruction]]:
        """Yields (name, user) for every use of a value, also under the names of its bitcasts."""
        for user in self.users(name):
            if user.opcode == "bitcast":
                yield from self.uses(user.name)
            else:
                yield name, user


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the computation that runs.
    """

    computations: dict[str, Computation]
    entry: str

    def called(self, op: Instruction, attribute: str) -> Computation:
        """Returns the computation that an attribute of an instruction names."""
        return self.computations[op.attribute(attribute).lstrip("%")]


def numbers(text: str) -> list[int]:
    """Returns the non-negative integers in a text."""
    return [int(digits) for digits in re.findall(r"\d+", text)]


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_END = re.compile(r"^}(?:, \w+=.*)?$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=? ]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"(?:^|, |%)([A-Za-z_][\w.\-]*)")


def parse(text: str) -> Module:
    """Parses the output of `compiled.as_text()`.

    Returns:
      The module.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry, name = {}, None, None
    instructions, root = {}, None
    for line in _logical_lines(text):
        if name is None:
            if head := _HEAD.match(line):
                name, instructions, root = head.group(2), {}, None
                if head.group(1):
                    entry = name
        elif _END.match(line):
            computations[name] = Computation(name, instructions, root)
            name = None
        elif start := _LINE.match(line):
            instruction = _instruction(start.group(2), line[start.end() :])
            instructions[instruction.name] = instruction
            if start.group(1):
                root = instruction.name
    if entry is None:
        raise ValueError("this is not the text of an optimised HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def _logical_lines(text: str) -> Iterator[str]:
    """Yields the lines of the text; rejoins lines that a kernel's metadata breaks."""
    whole = ""
    for line in text.splitlines():
        starts = not line or _HEAD.match(line) or _END.match(line) or _LINE.match(line)
        if starts and whole:
            yield whole
        whole = line if starts else f"{whole} {line}"
    yield whole


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shapes = tuple(
        Shape(
            dtype,
            tuple(int(re.sub(r"\D", "", dim)) for dim in dims.split(",") if dim.strip()),
            not re.search(r"S\([1-9]", layout or ""),
        )
        for dtype, dims, layout in _ARRAY.findall(text[:end])
    )
    opening = text.index("(", end)
    closing = _closing(text, opening)
    argument = text[opening + 1 : closing]
    return Instruction(
        name,
        text[end:opening].strip(),
        shapes,
        tuple(_NAME.findall(argument)),
        argument,
        text[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    """Returns the position of the bracket that matches the bracket at `opening`."""
    depth, quoted = 0, False
    for position in range(opening, len(text)):
        character = text[position]
        if character == '"' and text[position - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return position
    raise ValueError(f"brackets do not close in HLO text: {text[opening : opening + 80]!r}")
