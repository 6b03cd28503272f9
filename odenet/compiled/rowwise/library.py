"""C++ made into functions, and kept on disk where Inductor keeps its own: the next process only loads them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odenet.compiled.report import RefusalError

FLAGS = (
    "-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
    "-Wno-ignored-attributes", "-Wno-unknown-pragmas",
)  # fmt: skip

SETTINGS = ("sign", "rtol", "atol", "h_min", "h_max", "resolution", "max_steps")
PIECE = ("begin", "t1", "begin_shown", "t1_shown")
PROGRESS = ("n", "t", "h", "e1", "e2", "tries", "forced", "bad")
COUNTS = ("batch", "threads", "capacity", "keep", "fresh", "first", "count", "outputs")
NOT_SHOWN: Mapping[float, float] = {}
KEPT = 2**16  # numbers that a walk may work in and keep
PLACES = ("inputs", "landing", "x0", "x1", "ts", "hs", "xs", "times", "at_times", "work", "gradients")


def library(source: str) -> ctypes.CDLL:
    """The functions of a C++ source.

    Raises:
        RefusalError: it cannot be compiled.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    compiler = get_cpp_compiler()
    flags = (*FLAGS, *_machine())
    key = hashlib.sha256("\n".join((source, compiler, *flags, platform.machine(), _cpu())).encode()).hexdigest()[:32]
    folder = Path(cache_dir()) / "odenet"
    target = folder / f"{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            text, built = Path(scratch) / "solve.cpp", Path(scratch) / "solve.so"
            text.write_text(source)
            made = subprocess.run(
                [compiler, *flags, str(text), "-o", str(built), "-lm"], capture_output=True, text=True, check=False
            )
            if made.returncode:
                errors = [line for line in made.stderr.splitlines() if "error" in line]
                raise RefusalError(f"{compiler} cannot compile what was written for it: {(errors or [made.stderr])[0]}")
            os.replace(built, target)  # whoever else makes it makes the same
    return ctypes.CDLL(str(target))


class Walk(ctypes.Structure):
    """`Walk` of walk.h."""

    _fields_ = [
        *((name, ctypes.c_double) for name in SETTINGS),
        *((name, ctypes.c_double) for name in PIECE),
        *((name, ctypes.c_double) for name in PROGRESS),
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in PLACES),
    ]


@dataclass
class Code:
    """Functions of one library.

    Attributes:
        walk: takes a `Walk`.
        work_size: (batch, threads) -> how many numbers it works in.
        lanes: samples of a block, which fill a register.
        rooms: memory that was used and may be used again.
    """

    walk: Any
    work_size: Any
    lanes: int
    rooms: list[Room] = field(default_factory=list)

    @classmethod
    def of(cls, source: str, name: str, dtype: torch.dtype) -> Code:
        """The function called `name` of a source, and how much memory it works in."""
        found = library(source)
        walk, work_size = found[name], found["work_size"]
        walk.argtypes, walk.restype = (ctypes.POINTER(Walk),), None
        work_size.argtypes, work_size.restype = (ctypes.c_int64, ctypes.c_int64), ctypes.c_int64
        return cls(walk, work_size, register_width() // dtype.itemsize)


class Room:
    """A `Walk` with the memory that it works in: small solves of one size do not wait for another one each.

    Args:
        code: whose.
        x: state.
        threads: how many walk.
        inputs: how many tensors F takes beside state and time.

    Attributes:
        call: the walk, which knows its inputs and where it works.
        of: batch and threads.
        told: what it was told last, by whoever told it.
    """

    def __init__(self, code: Code, x: Tensor, threads: int, inputs: int):
        self.code, self.of = code, (x.shape[0], threads)
        self.call = Walk(batch=x.shape[0], threads=threads)
        self.told: tuple[Any, ...] = ()
        self._work = x.new_empty(code.work_size(x.shape[0], threads))
        self._places, self._steps = (ctypes.c_void_p * max(1, inputs))(), None
        self.call.inputs, self.call.work = ctypes.addressof(self._places), self._work.data_ptr()
        self._end = ctypes.addressof(self.call) + Walk.t1.offset
        self._landings: Any = None
        self._entered: tuple[float, float] | None = None
        self._held: Sequence[Tensor] = ()

    @classmethod
    def take(cls, code: Code, x: Tensor, threads: int, inputs: Sequence[Tensor]) -> Room:
        """Room for a walk from x; nobody else has it until it is left."""
        try:
            room = code.rooms.pop()
        except IndexError:
            room = None
        if room is None or room.of != (x.shape[0], threads):
            room = cls(code, x, threads, len(inputs))
        room.show(inputs)
        return room

    def show(self, inputs: Sequence[Tensor]) -> None:
        """Say what F uses now, and hold it until the room is left."""
        places, self._held = self._places, inputs
        for place, tensor in enumerate(inputs):
            places[place] = tensor.data_ptr()

    def follow(self, other: Room) -> None:
        """Go on with what another room has begun."""
        inputs, work = self.call.inputs, self.call.work
        ctypes.pointer(self.call)[0] = other.call
        self.call.inputs, self.call.work, self.told, self._entered = inputs, work, (), None

    def enter(
        self, start: float, end: float, shown: Mapping[float, float] = NOT_SHOWN, stops: Sequence[float] = ()
    ) -> None:
        """Walk over a piece of depth now.

        Args:
            start: where it begins.
            end: where it ends.
            shown: the times that F is shown at ends where it jumps.
            stops: times before the end at which a step has to end.
        """
        call = self.call
        call.fresh = 1
        if self._entered == (start, end) and not shown and not stops:
            return
        self._entered = None if shown or stops else (start, end)
        call.begin, call.t1 = start, end
        call.begin_shown, call.t1_shown = shown.get(start, start), shown.get(end, end)
        call.landing = self._end
        if stops:
            self._landings = (ctypes.c_double * (len(stops) + 1))(*stops, end)
            call.landing = ctypes.addressof(self._landings)

    def leave(self) -> None:
        """Let the next walk have it, if it is small."""
        self._held = ()
        if self._work.numel() <= KEPT:
            self.code.rooms.append(self)

    def steps(self, capacity: int) -> Steps:
        """Where the starts and the sizes of so many steps are noted, to which nobody looks back."""
        if self._steps is None or self._steps.capacity != capacity:
            self._steps = Steps(capacity)
        return self._steps


class Steps:
    """Starts and sizes of steps.

    Args:
        capacity: how many there may be.
    """

    def __init__(self, capacity: int):
        self.capacity, self._numbers = capacity, (ctypes.c_double * (2 * capacity))()

    def show(self, call: Walk) -> None:
        """Tell C++ where they lie."""
        call.ts = start = ctypes.addressof(self._numbers)
        call.hs = start + 8 * self.capacity

    def sizes(self, first: int, last: int) -> list[float]:
        """The sizes of some of them."""
        return self._numbers[self.capacity + first : self.capacity + last]


def pointers(tensors: Sequence[Tensor]) -> Any:
    """Where tensors lie; whoever hands over its address keeps it."""
    return (ctypes.c_void_p * max(1, len(tensors)))(*[t.data_ptr() for t in tensors])


@cache
def _machine() -> tuple[str, ...]:
    """What the compiler is told of this machine."""
    return ("-march=native",) if platform.machine().lower() in ("x86_64", "amd64") else ("-mcpu=native",)


@cache
def _cpu() -> str:
    """What code for this machine may use, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor() + torch.backends.cpu.get_cpu_capability()


@cache
def register_width() -> int:
    """Bytes of a register."""
    return 64 if " avx512f " in f"{_cpu()} " else 32
