"""The daemon on the device: fetches, verifies, hot-swaps and serves models, and reports how they do."""

__version__ = "0.1.0"
