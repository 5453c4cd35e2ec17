"""What administrators do over the API: people, tokens, webhooks, the audit log. `Client.admin` is one of these.

Answers are the API's JSON objects as dicts; errors as `covey_client.api` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covey_client.errors import ClientError
from covey_client.transport import Json, Transport

V1 = "/api/v1"
MAX_EXPORT_BYTES = 4 << 30


class Administration:
    """Over the connection of a `Client`."""

    def __init__(self, api: Transport) -> None:
        self._api = api

    # --- people ---------------------------------------------------------------------------------------------------------

    def log_in(self, name: str, password: str, role: str | None = None, ttl_s: int | None = None) -> Json:
        """An API token of this person; its secret is `token`."""
        return self._post("/login", name=name, password=password, role=role, ttl_s=ttl_s)

    def me(self) -> Json:
        return self._api.json("GET", f"{V1}/me")

    def change_password(self, current: str, new: str) -> None:
        self._post("/me/password", current=current, new=new)

    def log_out_everywhere(self, name: str | None = None) -> Json:
        """Oneself, or somebody else: {sessions, tokens} that ended."""
        return self._post(f"/people/{_name(name)}/logout-everywhere" if name else "/me/logout-everywhere")

    def people(self) -> list[Json]:
        return self._api.items(f"{V1}/people")

    def add_person(self, name: str, role: str, email: str | None = None, notify: Sequence[str] = ()) -> Json:
        """The person, with `invitation`: {code, expires_ms}; `/invitation?code=CODE` lets them choose a password, once."""
        return self._post("/people", name=name, role=role, email=email, notify=list(notify))

    def change_person(self, name: str, **changes: Any) -> Json:
        """`role`, `disabled`, `email`, `notify`; what is not given stays."""
        return self._api.json("PATCH", f"{V1}/people/{_name(name)}", json=changes)

    def invite(self, name: str) -> Json:
        """{code, expires_ms}, for a password that was forgotten."""
        return self._post(f"/people/{_name(name)}/invitation")

    # --- tokens ---------------------------------------------------------------------------------------------------------

    def tokens(self) -> list[Json]:
        return self._api.items(f"{V1}/tokens")

    def create_token(
        self,
        name: str,
        role: str,
        ttl_s: int | None = None,
        owner: str | None = None,
        models: Sequence[str] | None = None,
    ) -> Json:
        """A new API token; its secret is `token`, shown this once. `models`: the only ones that it may change."""
        wanted = list(models) if models else None
        return self._post("/tokens", name=name, role=role, ttl_s=ttl_s, owner=owner, models=wanted)

    def revoke_token(self, name: str) -> None:
        self._api.raw("DELETE", f"{V1}/tokens/{_name(name)}")

    # --- webhooks and e-mail --------------------------------------------------------------------------------------------

    def webhooks(self) -> list[Json]:
        return self._api.items(f"{V1}/webhooks")

    def webhook(self, name: str) -> Json:
        return self._api.json("GET", f"{V1}/webhooks/{_name(name)}")

    def add_webhook(self, name: str, url: str, events: Sequence[str] = (), secret: str | None = None) -> Json:
        """The webhook, with the secret that its messages are signed by; shown this once."""
        return self._post("/webhooks", name=name, url=url, events=list(events), secret=secret)

    def change_webhook(self, name: str, **changes: Any) -> Json:
        """`url`, `events`, `disabled`; what is not given stays."""
        return self._api.json("PATCH", f"{V1}/webhooks/{_name(name)}", json=changes)

    def rotate_webhook(self, name: str, overlap_s: int | None = None) -> Json:
        """Another secret; the old one signs too for `overlap_s` seconds."""
        return self._post(f"/webhooks/{_name(name)}/secret", overlap_s=overlap_s)

    def test_webhook(self, name: str) -> Json:
        """The delivery of a test; ask for it again to see what came of it."""
        return self._post(f"/webhooks/{_name(name)}/test")

    def remove_webhook(self, name: str) -> None:
        self._api.raw("DELETE", f"{V1}/webhooks/{_name(name)}")

    def test_mail(self, recipient: str) -> Json:
        """As `test_webhook`, by e-mail."""
        return self._post("/mail-test", recipient=recipient)

    def deliveries(self, webhook: str | None = None, state: str | None = None, limit: int | None = 100) -> list[Json]:
        """The newest first; `state`: pending, delivered or dead."""
        return self._api.items(f"{V1}/deliveries", {"webhook": webhook, "state": state}, "before", limit)

    def delivery(self, number: int) -> Json:
        return self._api.json("GET", f"{V1}/deliveries/{number}")

    def retry_delivery(self, number: int) -> Json:
        return self._post(f"/deliveries/{number}/retry")

    # --- the audit log --------------------------------------------------------------------------------------------------

    def audit(
        self,
        limit: int | None = 100,
        who: str | None = None,
        action: str | None = None,
        object: str | None = None,  # noqa: A002 - as the API calls it
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> list[Json]:
        """The newest entries first; all with `limit` None. An `action` that ends in a dot stands for all of its kind."""
        query = {"who": who, "action": action, "object": object, "since_ms": since_ms, "until_ms": until_ms}
        return self._api.items(f"{V1}/audit", query, "before", limit)

    def verify_audit(self, head_id: int | None = None, head_hash: str | None = None) -> Json:
        """{whole, entries, first_bad, kind, head}. With the last entry of an export: whether the log still holds that."""
        query = {"head_id": head_id, "head_hash": head_hash}
        given = {key: value for key, value in query.items() if value is not None}
        return self._api.json("GET", f"{V1}/audit/verify", params=given)

    def export_audit(self, to: Path) -> int:
        """Write the whole log, one entry a line; the file is there once all of it is. Its size in bytes."""
        return self._api.save(f"{V1}/audit/export", to, MAX_EXPORT_BYTES)

    def _post(self, path: str, **body: Any) -> Json:
        given = {key: value for key, value in body.items() if value is not None}
        return self._api.json("POST", V1 + path, json=given)


def _name(name: str) -> str:
    """A name as part of a path; one with a slash or `..` cannot lead elsewhere."""
    if not name or name in {".", ".."}:
        raise ClientError(f"{name!r} is not a name")
    return quote(name, safe="")
