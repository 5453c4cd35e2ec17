"""Python client of the Covey API, and the operators' command line."""

__version__ = "0.1.0"
