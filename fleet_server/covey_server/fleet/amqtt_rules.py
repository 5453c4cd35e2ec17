"""The access rules of the trial broker, as amqtt loads them: by the user name that a client claims. It proves nothing."""

from __future__ import annotations

from typing import Any

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

from covey_contract.topics import DEVICE_ID
from covey_server.fleet.ca import SERVER_USERS

# Devices that are cut off. The broker lives in this process, and amqtt builds its plugins itself.
cut_off: set[str] = set()


class KnownNames(BaseAuthPlugin):  # type: ignore[misc]  # amqtt ships no types
    """A client is called as it says, if that can be a device; its client id must say the same."""

    async def authenticate(self, *, session: Any) -> bool:
        name = session.username or ""
        return bool(DEVICE_ID.fullmatch(name)) and session.client_id == name and name not in cut_off


class OwnTopics(BaseTopicPlugin):  # type: ignore[misc]
    """A device writes below `covey/ITSELF/up` and reads below `covey/ITSELF/down` and `covey/_all/down`."""

    async def topic_filtering(self, *, session: Any = None, topic: str | None = None, action: Any = None) -> bool:
        name = session.username if session is not None else None
        if name is None or topic is None or name in cut_off:
            return False
        if name in SERVER_USERS:
            return topic.startswith("covey/")
        if action == Action.PUBLISH:
            return topic.startswith(f"covey/{name}/up/")
        return topic.startswith((f"covey/{name}/down/", "covey/_all/down/"))
