"""Work on fixed places in memory, which is done again and again: captured as a CUDA graph, or done as it stands."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

Body = Callable[[], None]


class NotCapturedError(Exception):
    """F cannot be captured as a CUDA graph."""


class Replay:
    """Some work that reads and writes fixed places in memory.

    Args:
        body: does it; without a look at the device.
        device: where.
        beside: a piece of work that shares the memory of its intermediate values; the two must not run at once.
        reset: to be done before the body where it is tried, e.g. going back to the first of a few steps.
    """

    def __init__(
        self,
        body: Body,
        device: torch.device,
        beside: Replay | None = None,
        reset: Callable[[], Any] = lambda: None,
    ):
        self.body, self.device, self.beside, self.reset = body, device, beside, reset
        self.graph: torch.cuda.CUDAGraph | None = None
        self._captures = device.type == "cuda" and torch.cuda.is_available()

    def __call__(self) -> None:
        """Do it."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.body()

    def capture(self) -> None:
        """Do it twice, then capture it, on CUDA; what it changes has to be set back afterwards.

        The first time everything that is made when it is first used is made; in the second no wait for the device is
        allowed, so that an F that waits is found before it spoils a capture.

        Raises:
            NotCapturedError: it cannot be captured.
        """
        if not self._captures or self.graph is not None:
            return
        pool = self.beside.graph.pool() if self.beside is not None and self.beside.graph is not None else None
        with torch.cuda.device(self.device):
            stream, present = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(present)
            with torch.cuda.stream(stream):
                self.reset()
                self.body()
                self.reset()
                try:
                    with without_waiting():
                        self.body()
                except RuntimeError as error:
                    raise NotCapturedError(f"it waits for the device: {_first_line(error)}") from error
            present.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    self.body()
            except RuntimeError as error:
                torch.cuda.synchronize()
                raise NotCapturedError(_first_line(error)) from error
            present.wait_stream(stream)
        self.graph = graph


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Whatever waits for the device raises here."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # that the mode is a prototype
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(mode)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
