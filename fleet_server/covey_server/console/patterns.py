"""The patterns of the engine's sentences, see `sentences`. The first that fits counts."""

from __future__ import annotations

from covey_server.console.i18n import noted

PATTERNS: tuple[str, ...] = (
    noted("%(active)s of %(total)s active"),
    noted("%(count)s in progress"),
)
