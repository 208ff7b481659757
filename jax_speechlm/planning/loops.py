"""Trip counts of the loops of a compiled program."""

import re
from typing import NamedTuple

from jax_speechlm.planning.hlo import Computation, Instruction, Module

_COPIES = ("copy", "copy-start", "copy-done", "bitcast", "convert")


class _Scalar(NamedTuple):
    """`constant`, plus element `element` of a computation's parameter if that is not None."""

    element: int | None
    constant: int


def trip_count(module: Module, loop: Instruction, computation: Computation) -> int | None:
    """Returns how often a `while` runs its body.

    None unless a counter that starts at a constant (at 0 if that is not visible) and grows by one is compared with one.

    Args:
      computation: that the loop is in.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    condition = module.called(loop, "condition")
    compare, scope, arguments = condition.instructions[condition.root], condition, None
    if compare.opcode == "fusion":
        arguments = (condition, compare.operands, None)
        scope = module.called(compare, "calls")
        compare = scope.instructions[scope.root]
    if compare.opcode != "compare" or compare.attribute("direction") not in ("LT", "GT"):
        return None
    sides = [_scalar(module, scope, name, arguments) for name in compare.operands]
    bound = next((side.constant for side in sides if side and side.element is None), None)
    counter = next((side.element for side in sides if side and side.element is not None), None)
    if bound is None:
        return None
    step, start = 1, 0
    if counter is not None:
        body = module.called(loop, "body")
        root = body.instructions[body.root]
        if root.opcode == "tuple":
            after = _scalar(module, body, root.operands[counter])
            step = after.constant if after and after.element == counter and after.constant > 0 else 1
        initial = computation.instructions.get(loop.operands[0])
        if initial is not None and initial.opcode == "tuple":
            before = _scalar(module, computation, initial.operands[counter])
            start = before.constant if before and before.element is None else 0
    return max(-((start - bound) // step), 0)


def _scalar(module: Module, computation: Computation, name: str, arguments=None) -> _Scalar | None:
    """Evaluates an integer of a computation.

    Args:
      arguments: of a fusion's computation: (the computation that it is in, its operands, that one's arguments).

    Returns:
      The value; None if it is not a constant, an element of the parameter, or their sum.
    """
    op = computation.instructions.get(name)
    if op is None:
        return None
    if op.opcode == "constant":
        text = op.argument.strip()
        return _Scalar(None, int(text)) if re.fullmatch(r"-?\d+", text) else None
    if op.opcode == "parameter" and arguments is not None:
        outer, operands, further = arguments
        return _scalar(module, outer, operands[int(op.argument)], further)
    if op.opcode == "get-tuple-element":
        source = computation.instructions[op.operands[0]]
        return _Scalar(int(op.attribute("index")), 0) if source.opcode == "parameter" else None
    if op.opcode in _COPIES:
        return _scalar(module, computation, op.operands[0], arguments)
    if op.opcode == "fusion":
        inner = module.called(op, "calls")
        return _scalar(module, inner, inner.root, (computation, op.operands, arguments))
    if op.opcode == "add":
        a, b = (_scalar(module, computation, operand, arguments) for operand in op.operands)
        if a and b and None in (a.element, b.element):
            return _Scalar(b.element if a.element is None else a.element, a.constant + b.constant)
    return None
