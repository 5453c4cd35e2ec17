"""Helpers that more than one test module imports; what only fixtures need stays in a conftest."""
