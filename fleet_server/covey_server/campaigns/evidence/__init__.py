"""The evidence for a stage's gates, from the database."""

from __future__ import annotations

from covey_server.campaigns.evidence.reader import EvidenceReader

__all__ = ["EvidenceReader"]
