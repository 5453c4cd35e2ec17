"""The engine's sentences in the present language.

The engine, the gates and the choice of builds write English sentences into the database (why a campaign waits, what a gate has
seen, why a device is left out), since programs and logs read them too. Here each is recognised by its pattern and said again with
the same figures; one that no pattern fits is shown as it is. `%(..._text)s` stands for a part that is a sentence itself.

>>> sentence("canary: 3 of 10 active; 7 in progress; latency p99 end_to_end 3.4234 -> 20.9515 ms")
'canary: 3 of 10 active; 7 in progress; latency p99 end to end 3.423 → 20.95 ms'
"""

from __future__ import annotations

import re
from functools import cache

from covey_server.console import gate_view, i18n, states
from covey_server.console.i18n import gettext as _
from covey_server.console.patterns import PATTERNS

# Not a part of a version such as 1.7.1.116.
_LONG_NUMBER = re.compile(r"(?<![\w.])\d+\.\d{3,}(?!\.?\d)")
_TIMES = re.compile(r"(?<![\w-])x(?=\d)")
_PLACE = re.compile(r"%\((\w+)\)s")
_MAX_DEPTH = 6
_MAX_LENGTH = 2000


def sentence(text: str) -> str:
    """A sentence of the engine for people."""
    return _plain(text if i18n.current() == i18n.DEFAULT else _said(text[:_MAX_LENGTH], 0))


def _said(text: str, depth: int) -> str:
    if depth > _MAX_DEPTH or not text:
        return text
    parts = _parts(text)
    if len(parts) > 1:
        return _("; ").join(_said(part, depth + 1) for part in parts)
    for pattern, message in _compiled():
        found = pattern.fullmatch(text)
        if found is None:
            continue
        values = {
            name: _said(value, depth + 1) if name.endswith("_text") else _name(name, value)
            for name, value in found.groupdict().items()
        }
        return _(message) % values
    # A list without a pattern of its own: its parts may have one.
    parts = text.split(", ")
    said = [_said(part, depth + 1) for part in parts] if len(parts) > 1 else parts
    return _(", ").join(said) if said != parts else text


_GATES = frozenset({"install_failures", "errors", "latency", "drift", "temperature", "throttling", "memory", "silence"})


def _name(place: str, value: str) -> str:
    if place == "gate" or (place == "prefix" and (value in _GATES or value.startswith(("latency_p", "expression_")))):
        return gate_view.gate_name(value)
    return states.look(value.replace(" ", "_")).text if place == "state_name" else value


def _parts(text: str) -> list[str]:
    """Split at semicolons outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and text.startswith("; ", at):
            parts.append(text[start:at])
            start = at + 2
    return [*parts, text[start:]]


@cache
def _compiled() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(_regular(message)), message) for message in PATTERNS]


def _regular(message: str) -> str:
    """The pattern as a regular expression; literal parts write a percent sign twice, as messages do."""
    parts, end = [], 0
    for found in _PLACE.finditer(message):
        parts.append(re.escape(message[end : found.start()].replace("%%", "%")))
        name, end = found[1], found.end()
        parts.append(f"(?P<{name}>{_place(name)})")
    return "".join([*parts, re.escape(message[end:].replace("%%", "%"))])


def _place(name: str) -> str:
    if name.endswith(("_text", "_list")):
        return ".+"
    if name == "at_name":  # a moment, with colons
        return "[^;]+?"
    return "[^;:]+?" if name.endswith("_name") else "[^ ;,]+?"


def _plain(text: str) -> str:
    text = text.replace("end_to_end", states.name("end_to_end")).replace("->", "→")
    return _TIMES.sub("×", _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.4g}", text))
