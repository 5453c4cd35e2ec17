"""The mathematics of verdicts: e-values, which may be looked at as often as one likes.

An e-value is a number that is on average at most 1 while nothing is wrong, whenever one looks; it is large when something is, and 1/α
is passed in at most a share α of cases. Everything here is pure Python over plain numbers; `docs/verdicts.md` states exactly what is
computed, and from which sources.
"""
