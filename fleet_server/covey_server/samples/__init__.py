"""Samples that devices have kept for labelling, fetched by an operator: brought here, kept for a while, handed on."""
