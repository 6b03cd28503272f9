"""Where to put checkpoints: how to walk back over l steps from a few kept states with the fewest steps redone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb

from torch import Tensor

Start = list[Tensor]


def split(steps: int, slots: int) -> int:
    """After how many of `steps` steps to keep the next state, when its first one is kept and `slots` are free.

    With β(s, r) = C(s + r, s), a chain of up to β(s, r) steps is reversed from s kept states redoing no step more than
    r times; r is the smallest number that does, and the split leaves at most β(s, r-1) steps before it and β(s-1, r)
    after it, s = slots + 1.

    Args:
        steps: number of steps to reverse, at least 2.
        slots: states that may be kept beside the first one, at least 1.

    Returns:
        A number from 1 to `steps` - 1.

    Reference:
        Griewank and Walther 2000, Algorithm 799: revolve.
    """
    s, r = slots + 1, 1
    while comb(s + r, s) < steps:
        r += 1
    return min(comb(s + r - 1, s), steps - comb(s + r - 2, s - 1))


def first_chain(steps: int, slots: int) -> list[int]:
    """The steps at whose start the forward pass over `steps` steps keeps the state, ascending, at most `slots`."""
    chain, position = [], 0
    while steps - position > 1 and len(chain) < slots:
        position += split(steps - position, slots - len(chain))
        chain.append(position)
    return chain


class Store:
    """The starts of steps that a forward pass keeps: all, or up to `slots` of them.

    When the number of steps is known they are placed for the fewest steps redone (binomial). When it is not, every
    k-th is kept, and k is doubled whenever they become too many.

    Args:
        slots: how many may be kept beside x0, or None for all.
        steps: the number of steps, or None if it is not known.

    Attributes:
        starts: those that are kept, by the number of the step.

    Reference:
        Griewank and Walther 2000, Algorithm 799: revolve; Stumm and Walther 2010, New Algorithms for Optimal Online
        Checkpointing.
    """

    def __init__(self, slots: int | None, steps: int | None):
        self.slots, self.starts = slots, dict[int, Start]()
        self._wanted = None if steps is None or slots is None else set(first_chain(steps, slots))
        self._stride = 1

    def put(self, number: int, start: Start) -> None:
        """Keep the start of step `number`, if it is among those to be kept; that of step 0 is x0, and known."""
        if number == 0 or number % self._stride or (self._wanted is not None and number not in self._wanted):
            return
        self.starts[number] = start
        if self._wanted is None and self.slots is not None and len(self.starts) > self.slots:
            self._stride *= 2
            self.starts = {n: start for n, start in self.starts.items() if n % self._stride == 0}

    def take(self) -> tuple[list[tuple[int, int]], list[Tensor]]:
        """Hand the tensors over, flat; and for each start its step, and of how many tensors it is."""
        layout = [(number, len(start)) for number, start in self.starts.items()]
        tensors = [tensor for start in self.starts.values() for tensor in start]
        self.starts = {}
        return layout, tensors


def backwards(
    end: int, stack: list[tuple[int, Start]], slots: int | None, advance: Callable[[Start, int, int], Start]
) -> Iterator[tuple[int, int, Start]]:
    """(step, kept step before it, its start) for all steps from the last one; gaps are divided where slots are free.

    Args:
        end: number of steps.
        stack: the starts that are kept, that of step 0 first; emptied on the way.
        slots: how many may be kept beside the first.
        advance: (start, number, until) -> the start of step `until`, by redoing the steps from `number` on.
    """
    while end > 0:
        number, start = stack[-1]
        free = 0 if slots is None else slots + 1 - len(stack)
        if end - number > 1 and free > 0:
            middle = number + split(end - number, free)
            stack.append((middle, advance(start, number, middle)))
            continue
        end -= 1
        if end == number:
            stack.pop()
        yield end, number, start
        del start
