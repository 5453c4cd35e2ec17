"""Kinds of edge device as data, matching and build selection."""

__version__ = "0.1.0"
