"""The generated configuration and access list of mosquitto, as text. Tested with 2.0.11.

Invariants: nobody connects without a certificate of the fleet's CA; the certificate's common name is both user name and
client id, so that no device can act as another; a device writes only below `covey/ITSELF/up` and reads only below
`covey/ITSELF/down` and `covey/_all/down`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from covey_contract.blocks import REQUEST_BLOCKS
from covey_contract.manifest import BLOCK_BYTES
from covey_contract.wire import MAX_MESSAGE_BYTES
from covey_server.fleet.ca import SERVER_USERS, KeyPair

# A packet is a payload, a topic and a header; only payloads are bounded by the contract.
MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + 1024
# Messages held for one slow client. What is dropped is said again by its device, later and on top of the rest; so this is what ten
# thousand devices say within seconds while the server is busy. Devices' sessions are clean: for one that sleeps nothing is held.
MAX_QUEUED_MESSAGES = 100_000
MAX_INFLIGHT_MESSAGES = REQUEST_BLOCKS
# And by bytes, of QoS 1. What waits for a client is kept once for all, but mosquitto 2.0.11 hands it to a slow client's connection in one go,
# a copy for each, as soon as that acknowledges anything; so this is what each slow client can cost. What is dropped is asked for.
MAX_QUEUED_BYTES = REQUEST_BLOCKS * BLOCK_BYTES


@dataclass(frozen=True)
class Layout:
    """Where mosquitto finds and keeps its things."""

    folder: Path
    ca: Path
    server: KeyPair

    @property
    def config(self) -> Path:
        return self.folder / "mosquitto.conf"

    @property
    def acl(self) -> Path:
        return self.folder / "acl"

    @property
    def crl(self) -> Path:
        return self.folder / "crl.pem"

    @property
    def log(self) -> Path:
        return self.folder / "mosquitto.log"


def config_text(layout: Layout, bind: str, port: int, user: str | None) -> str:
    """`user`: whom mosquitto becomes when started by root; it would else become one who cannot read our files."""
    lines = [
        f"listener {port} {bind}",
        f"cafile {layout.ca}",
        f"certfile {layout.server.certificate}",
        f"keyfile {layout.server.key}",
        f"crlfile {layout.crl}",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        "tls_version tlsv1.2",
        f"acl_file {layout.acl}",
        "persistence true",
        f"persistence_location {layout.folder}/",
        "autosave_interval 30",
        "persistent_client_expiration 14d",
        f"max_packet_size {MAX_PACKET_BYTES}",
        f"max_inflight_messages {MAX_INFLIGHT_MESSAGES}",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        "max_keepalive 600",
        "set_tcp_nodelay true",
        "connection_messages false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if user is not None:
        lines.append(f"user {user}")
    return "\n".join(lines) + "\n"


def acl_text(cut_off: Iterable[str]) -> str:
    """The access list; devices in `cut_off` may neither read nor write, whatever certificate they still hold."""
    parts = [f"user {user}\ntopic readwrite covey/#\n" for user in SERVER_USERS]
    parts += [f"user {device}\ntopic deny covey/#\n" for device in sorted(cut_off)]
    parts.append("pattern write covey/%u/up/#\npattern read covey/%u/down/#\npattern read covey/_all/down/#\n")
    return "\n".join(parts)
