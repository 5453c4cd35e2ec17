"""Who this device is: its key, certificate, the fleet's CA, and whom it trusts. Written once by enrolment, durably.

`identity/` appears by rename, whole; the private key is readable by the agent's user alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from covey_agent import durable
from covey_agent.errors import AgentError, NotEnrolledError
from covey_contract.enrolment import Broker, EnrolResponse
from covey_contract.signing import Trust

KEY, CERTIFICATE, CA, ENROLMENT, FACTS = "key.pem", "certificate.pem", "ca.pem", "enrolment.json", "facts.json"
ROOT = "root.json"  # of the repository of releases, as it was at enrolment


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """`enrolment.json`."""

    device: str
    server: str
    broker: Broker
    trust: Trust


def load_identity(folder: Path) -> Identity:
    """Raises `NotEnrolledError`, or `AgentError` if the folder is damaged."""
    new = folder.with_name("identity.new")
    try:
        if not folder.exists() and (new / ENROLMENT).exists():  # a kill between the two renames of a second enrolment
            new.rename(folder)
        return msgspec.json.decode((folder / ENROLMENT).read_bytes(), type=Identity)
    except FileNotFoundError:
        raise NotEnrolledError(f"{folder.parent} is not enrolled; run `covey-agent enroll` first") from None
    except NotADirectoryError as error:
        raise AgentError(f"{folder.parent} cannot be used: it is no folder") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AgentError(f"{folder / ENROLMENT} cannot be read: {error}") from error


def save_identity(folder: Path, server: str, key_pem: bytes, response: EnrolResponse, facts: bytes | None) -> Identity:
    """Write all of it durably; an identity that was there before is replaced as a whole. `facts`: of a simulated device."""
    identity = Identity(device=response.device, server=server, broker=response.broker, trust=response.trust)
    new, old = folder.with_name("identity.new"), folder.with_name("identity.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    durable.make_folder(new, mode=0o700)
    durable.write(new / KEY, key_pem, mode=0o600)
    durable.write(new / CERTIFICATE, response.certificate_pem.encode())
    durable.write(new / CA, response.ca_pem.encode())
    if facts is not None:
        durable.write(new / FACTS, facts)
    if response.root:
        durable.write(new / ROOT, response.root)
    durable.write(new / ENROLMENT, msgspec.json.encode(identity))
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    durable.sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    return identity
