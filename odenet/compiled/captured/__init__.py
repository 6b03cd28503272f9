"""Solves for a GPU: t, h, control and record are numbers on the device, and the host replays steps that were captured.

- A step of an adaptive walk is *masked*: whether it is accepted, rejected, or comes after the end, it is the same work,
  and where the walk has ended it changes nothing. So the host has nothing to decide: it has K steps taken, looks once,
  and has more taken if that was not enough (`adaptive.py`).
- Fixed steps are taken without a look (`fixed.py`), and so is the way back over a record (`pullback.py`).
- On CUDA the work of a step is captured once as a CUDA graph and replayed; elsewhere it is done as it stands, which is
  how it is tested without a GPU (`replay.py`). F is not traced, so it may be any function that neither waits for the
  device nor draws random numbers. What lies between two evaluations of F (`arithmetic.py`) is done by a few Triton
  kernels there (`fused.py`, `kernels.py`).
- A graph holds addresses. What F is made of is looked at before every solve (`identity.py`), and another shape, another
  parameter or another number that F holds asks for another capture.
"""

from odenet.compiled.captured.graphs import CapturedGraphs

__all__ = ["CapturedGraphs"]
