"""A package in the package, which passes a kernel on under another name."""

from corpus.deep.inner import kernel as reexported

__all__ = ["reexported"]
