"""The text of an optimized program, read into computations and instructions; what they cost is left to `work`."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,*]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) .*->.*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r"\bindex=(\d+)")
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}
# What hands an array on as it is.
_SAME = ("bitcast", "copy", "copy-done", "copy-start", "reshape", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array as the compiler laid it out.

    Attributes:
        dtype: in the compiler's words.
        dims: sizes.
        layout: dimensions from the fastest, tiles and memory space, as the text has them.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def on_chip(self) -> bool:
        """Whether it lies in the small memory of the processor, or the host's, not in HBM."""
        space = _SPACE.search(self.layout)
        return space is not None and space[1] != "0"

    @property
    def bytes(self) -> float:
        """Without padding."""
        return _bits(self.dtype) * math.prod(self.dims) / 8

    @property
    def padded_bytes(self) -> float:
        """With what fills its tiles."""
        tile = _TILE.search(self.layout)
        if tile is None or not self.dims:
            return self.bytes
        order = [int(i) for i in self.layout.split(":")[0].split(",") if i]
        sizes = [self.dims[i] for i in order]
        along = [int(n) for n in reversed(tile[1].split(",")) if n != "*"]
        for i, step in enumerate(along[: len(sizes)]):
            sizes[i] = -(-sizes[i] // step) * step
        return _bits(self.dtype) * math.prod(sizes) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the program.
        opcode: such as `fusion`.
        arrays: what it makes; several of a tuple.
        operands: names of instructions; of a constant or a parameter its value or number.
        attributes: the rest of the line.
        is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> dict[str, str]:
        """Names of computations by the role in which they are called."""
        found = dict(_CALLED.findall(self.attributes))
        if branches := _BRANCHES.search(self.attributes):
            found |= {f"branch{i}": name.strip(" %") for i, name in enumerate(branches[1].split(","))}
        return found

    @property
    def index(self) -> int:
        """Of a `get-tuple-element`."""
        found = _INDEX.search(self.attributes)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program.

    Attributes:
        name: unique.
        instructions: by name, in their order.
    """

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The result."""
        return next(one for one in self.instructions.values() if one.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each one."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for one in self.instructions.values():
            for operand in one.operands:
                if operand in found:
                    found[operand].append(one)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        return {int(one.operands[0]): one for one in self.instructions.values() if one.opcode == "parameter"}

    def origin(self, name: str) -> Instruction | None:
        """The instruction that made what `name` hands on unchanged."""
        found = self.instructions.get(name)
        while found is not None and found.opcode in _SAME and found.operands:
            found = self.instructions.get(found.operands[0])
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        computations: by name.
        entry: the name of the one that is run.
        num_devices: that it is divided over.
    """

    computations: dict[str, Computation]
    entry: str
    num_devices: int

    def trips(self, loop: Instruction, within: Computation) -> int | None:
        """How often a `while` runs: as the compiler noted, else as its condition says; None: not known beforehand."""
        if known := _KNOWN_TRIPS.search(loop.attributes):
            return int(known[1])
        condition, body = (self.computations[loop.called[role]] for role in ("condition", "body"))
        test, start = condition.root, within.origin(loop.operands[0])
        if test.opcode != "compare" or "direction=LT" not in test.attributes or start is None:
            return None
        counter, limit = (condition.origin(name) for name in test.operands)
        if counter is None or counter.opcode != "get-tuple-element":
            return None
        last, first = _constant(limit, start, within), _constant(counter, start, within)
        step = self._step(body, counter.index)
        if last is None or first is None or not step:
            return None
        return max(-(-(last - first) // step), 0)

    def _step(self, body: Computation, index: int) -> int | None:
        """What a turn adds to the counter."""
        if body.root.opcode != "tuple":
            return None
        added = body.origin(body.root.operands[index])
        if added is not None and added.opcode == "fusion":
            inner = self.computations[added.called["calls"]]
            added, body = inner.root, inner
        if added is None or added.opcode != "add":
            return None
        for name in added.operands:
            found = body.origin(name)
            if found is not None and found.opcode == "constant":
                return int(found.operands[0])
        return None


def parse_hlo(text: str) -> Module:
    """Read `compiled.as_text()`.

    Raises:
        ValueError: it is no program.
    """
    computations: dict[str, Computation] = {}
    entry, instructions = "", {}
    for line in text.splitlines():
        # A computation ends where the next begins: a kernel's own notes bring lines of brackets into its middle.
        if line.startswith((" ", "\t")):
            if (found := _instruction(line.strip())) is not None:
                instructions[found.name] = found
        elif (head := _HEAD.match(line)) and not line.startswith("HloModule"):
            instructions = {}
            computations[head[2]] = Computation(head[2], instructions)
            entry = head[2] if head[1] else entry
    if not entry:
        raise ValueError(f"a program's text has a computation marked ENTRY; got {text[:80]!r} …")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(line: str) -> Instruction | None:
    is_root = line.startswith("ROOT ")
    name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    opcode = rest[:opening]
    is_leaf = opcode in ("constant", "parameter")
    operands = (inside,) if is_leaf else tuple(re.findall(r"%([\w.\-]+)", inside))
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout or "")
        for dtype, dims, layout in _ARRAY.findall(shape)
    )
    return Instruction(name.lstrip("%"), opcode, arrays, operands, rest[closing + 1 :], is_root)


def _closing(text: str, opening: int) -> int:
    """Where the bracket at `opening` ends."""
    depth = 0
    for match in re.finditer(r"[()]", text[opening:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return opening + match.start()
    raise ValueError(f"a line of the program has a bracket without end: {text[:200]!r}")


def _constant(found: Instruction | None, start: Instruction, within: Computation) -> int | None:
    """A constant of a loop's condition, or the one that its state starts with."""
    if found is not None and found.opcode == "get-tuple-element" and start.opcode == "tuple":
        found = within.origin(start.operands[found.index])
    if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.operands[0]):
        return None
    return int(found.operands[0])


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)  # s32, f8e4m3, u4, c64
    return int(digits[0]) if digits else 0
