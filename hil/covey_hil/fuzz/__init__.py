"""Inputs that nobody meant well, for every decoder of bytes from outside (`./dev fuzz`, docs/fuzzing.md)."""
