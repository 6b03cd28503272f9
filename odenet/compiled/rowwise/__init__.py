"""Solves of an F that treats every sample by itself, as C++ of their own that works on lanes of samples."""

from odenet.compiled.rowwise.values import NotRowwiseError

__all__ = ["NotRowwiseError"]
