"""Where to put checkpoints: how to walk back over l steps from a few kept states with the fewest steps redone."""

from __future__ import annotations

from math import comb


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
