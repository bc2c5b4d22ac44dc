"""What an optimized program does when it runs: arithmetic, bytes of HBM and bytes between devices, loops counted."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

from clip_sharding.arithmetic import arithmetic, is_workspace
from clip_sharding.collectives import COLLECTIVES, between_slices, bytes_sent, collective_in, continues
from clip_sharding.hlo import Array, Computation, Instruction, Module

# What moves nothing: names, and the ends of what began earlier.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "optimization-barrier",
    "opt-barrier",
)
_FREE_CALLS = re.compile(r'custom_call_target="(ConcatBitcast|AssumeGatherIndicesInBound|AllocateBuffer|Sharding)"')
_PART_OF_TRANSFER = re.compile(r'custom_call_target="AsyncCollective(Start|Done)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Work:
    """One instruction that a device executes, as often as it does.

    Attributes:
        name: of the instruction.
        opcode: such as `fusion`, or a collective's.
        source: where in the Python program it comes from.
        times: that it is executed.
        flops: of one execution, by matrix products and convolutions.
        bytes: of HBM that one execution reads and writes.
        sent: bytes that the device sends to others in one.
        between_slices: whether those others are on another slice.
    """

    name: str
    opcode: str
    source: str
    times: int
    flops: float
    bytes: float
    sent: float = 0.0
    between_slices: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """What a device does in one call.

    Attributes:
        work: in the order of the program, loops once, with their `times`.
        kept: bytes that one loop leaves in HBM for another: activations kept for the way back.
        uncounted_loops: loops of unknown length, which count as one turn.
        library_calls: calls into libraries whose arithmetic the text does not tell.
    """

    work: tuple[Work, ...]
    kept: float
    uncounted_loops: int
    library_calls: int

    @functools.cached_property
    def flops(self) -> float:
        """Of one device."""
        return sum(one.times * one.flops for one in self.work)

    @functools.cached_property
    def flops_counted_once(self) -> float:
        """As the compiler's own analysis counts them: a loop's body once."""
        return sum(one.flops for one in self.work)

    @functools.cached_property
    def bytes(self) -> float:
        """Of HBM, of one device."""
        return sum(one.times * one.bytes for one in self.work)

    @functools.cached_property
    def sent(self) -> dict[str, float]:
        """Bytes that a device sends within its slice, by kind of collective."""
        return self._sent(between_slices=False)

    @functools.cached_property
    def sent_between_slices(self) -> dict[str, float]:
        """Likewise to other slices."""
        return self._sent(between_slices=True)

    def _sent(self, *, between_slices: bool) -> dict[str, float]:
        found: dict[str, float] = dict.fromkeys(COLLECTIVES, 0.0)
        for one in self.work:
            if one.sent and one.between_slices == between_slices:
                found[one.opcode] += one.times * one.sent
        return {kind: sent for kind, sent in found.items() if sent}


def count_work(module: Module) -> Program:
    """Walk through a program as a device does."""
    walk = _Walk(module)
    work = tuple(walk.through(module.computations[module.entry], 1))
    return Program(work, walk.kept, walk.uncounted_loops, walk.library_calls)


class _Walk:
    def __init__(self, module: Module) -> None:
        self.module = module
        self.kept = 0.0
        self.uncounted_loops = 0
        self.library_calls = 0

    def through(self, computation: Computation, times: int) -> Iterator[Work]:
        self.kept = max(self.kept, _kept(computation))
        for one in computation.instructions.values():
            called = one.called
            match one.opcode:
                case "while":
                    trips = self.module.trips(one, computation)
                    if trips is None:
                        self.uncounted_loops += 1
                    yield from self.through(self.module.computations[called["body"]], times * (trips or 1))
                case "conditional":
                    branches = [list(self.through(self.module.computations[name], times)) for name in called.values()]
                    yield from max(branches, key=lambda branch: sum(w.flops + w.bytes for w in branch))
                case "call":
                    yield from self.through(self.module.computations[called["to_apply"]], times)
                case "async-start":
                    yield from self.through(self.module.computations[called["calls"]], times)
                case _ if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
                    continue
                case _:
                    yield self._work(one, computation, times)

    def _work(self, one: Instruction, computation: Computation, times: int) -> Work:
        source = _SOURCE.search(one.attributes)
        away = between_slices(one, computation) if one.opcode == "send" else None
        kind, sent = away or self._sent(one, computation)
        return Work(
            name=one.name,
            opcode=kind,
            source=source[1] if source else "",
            times=times,
            flops=self._flops(one, computation),
            bytes=self._bytes(one, computation),
            sent=sent,
            between_slices=away is not None,
        )

    def _flops(self, one: Instruction, computation: Computation) -> float:
        if one.opcode == "fusion":
            inner = self.module.computations[one.called["calls"]]
            return sum(self._flops(each, inner) for each in inner.instructions.values())
        flops = arithmetic(one, computation)
        if flops is None:
            self.library_calls += 1
        return flops or 0.0

    def _sent(self, one: Instruction, computation: Computation) -> tuple[str, float]:
        """The kind of collective that an instruction is or holds, and what a device sends in it."""
        kind, collective = one.opcode.removesuffix("-start"), one
        if kind == "fusion":
            computation = self.module.computations[one.called["calls"]]
            found = collective_in(computation)
            if found is None or continues(found):
                return kind, 0.0
            collective, kind = found, found.opcode
            if kind == "all-reduce" and any(
                each.opcode == "dynamic-slice" for each in computation.instructions.values()
            ):
                kind = "reduce-scatter"
        if kind not in COLLECTIVES:
            return kind, 0.0
        return kind, bytes_sent(kind, collective, computation, self.module.num_devices)

    def _bytes(self, one: Instruction, computation: Computation) -> float:
        operands = [computation.instructions[name] for name in one.operands]
        match one.opcode:
            case "send":
                return _hbm(operands[0].arrays)
            case "recv":
                return _hbm(one.arrays[:1])
            case "copy-start":
                return _hbm(one.arrays[:2])
            case "all-gather-start" | "collective-permute-start":  # whose results begin with their operands
                return _hbm(one.arrays[len(operands) :]) + sum(_hbm(operand.arrays) for operand in operands)
            case "slice-start" | "dynamic-slice-start":
                moved = one.arrays[1]
                return moved.padded_bytes * (not moved.on_chip) + moved.padded_bytes * (not one.arrays[0].on_chip)
            case "dynamic-slice" | "slice" | "gather":
                source = operands[0].arrays[0]
                return _hbm(one.arrays) + one.arrays[0].padded_bytes * (not source.on_chip)
            case "dynamic-update-slice":
                update, target = operands[1].arrays[0], one.arrays[0]
                return _hbm([update]) + update.padded_bytes * (not target.on_chip)
            case "custom-call" if _FREE_CALLS.search(one.attributes):
                return 0.0
            case "fusion":
                return self._fusion_bytes(self.module.computations[one.called["calls"]], one, operands)
        made = [array for array in one.arrays if not is_workspace(one, array)]
        return _hbm(made) + sum(_hbm(operand.arrays) for operand in operands)

    def _fusion_bytes(self, inner: Computation, one: Instruction, operands: list[Instruction]) -> float:
        """Operands and results, of which a fusion may read and write slices alone."""
        total = 0.0
        for number, operand in enumerate(operands):
            if operand.arrays and not operand.arrays[0].on_chip:
                total += self._read(inner, inner.parameters[number])
        for result, array in zip(_results(inner), one.arrays, strict=False):
            if array.on_chip or result is None or result.opcode == "parameter":
                continue
            written = inner.origin(result.name)
            if written is not None and written.opcode == "dynamic-update-slice":
                total += inner.instructions[written.operands[1]].arrays[0].padded_bytes
            else:
                total += array.padded_bytes
        return total

    def _read(self, inner: Computation, parameter: Instruction) -> float:
        """The bytes of a parameter that a fusion, or one inside it, reads."""
        whole, read = sum(array.padded_bytes for array in parameter.arrays), 0.0
        todo = [parameter.name]
        while todo:
            name = todo.pop()
            if inner.instructions[name].is_root:
                return whole
            for user in inner.users[name]:
                if user.opcode == "bitcast":
                    todo.append(user.name)
                elif user.opcode == "tuple" or _PART_OF_TRANSFER.search(user.attributes) or continues(user):
                    continue  # handed on where it is, or in the hands of a transfer that began earlier
                elif user.opcode == "fusion":
                    nested = self.module.computations[user.called["calls"]]
                    read += sum(
                        self._read(nested, nested.parameters[i])
                        for i, operand in enumerate(user.operands)
                        if operand == name
                    )
                elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                    read += user.arrays[0].padded_bytes
                elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                    return whole
        return min(read, whole)


def _results(inner: Computation) -> list[Instruction | None]:
    """What a fusion makes, in the order of its results; None where an earlier instruction makes it."""
    root = inner.root
    match _PART_OF_TRANSFER.search(root.attributes):
        case None:
            made = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
            return [None if continues(one) else one for one in made]
        case part if part[1] == "Start":
            return [None, *(inner.instructions[name] for name in root.operands)]
        case _:
            return []


def _kept(computation: Computation) -> float:
    """Bytes of HBM that a loop of this computation leaves for a later one."""
    found: dict[tuple[str, int], float] = {}
    for loop in computation.instructions.values():
        state = computation.origin(loop.operands[0]) if loop.opcode == "while" else None
        for name in state.operands if state is not None and state.opcode == "tuple" else ():
            made = computation.origin(name)
            if made is None or made.opcode != "get-tuple-element":
                continue
            maker = computation.origin(made.operands[0])
            if maker is not None and maker.opcode == "while" and maker is not loop:
                # What the earlier loop only passed on was there before it.
                begun = computation.origin(maker.operands[0])
                if begun is not None and begun.opcode == "tuple":
                    first = computation.origin(begun.operands[made.index])
                    if first is not None and first.opcode in ("parameter", "get-tuple-element"):
                        continue
                found[maker.name, made.index] = _hbm(made.arrays)
    return sum(found.values())


def _hbm(arrays: tuple[Array, ...] | list[Array]) -> float:
    return sum(array.padded_bytes for array in arrays if not array.on_chip)
