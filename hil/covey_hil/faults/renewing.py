"""The device's identity under fault: its own files, its own loop part, beside a played server that signs and a broker that takes what it has signed."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from covey_agent.credentials import NEXT, RENEWED, Credentials
from covey_agent.errors import EnrolmentError
from covey_agent.identity import CA, ENROLMENT, load_identity, save_identity
from covey_agent.keys import make_key_and_request
from covey_agent.renewal import Renewal
from covey_agent.renewal_relay import RenewalRelay
from covey_agent.renewing import Asker, Failed, Granted, Outcome, check
from covey_agent.settings import Settings
from covey_contract.enrolment import Broker, EnrolResponse, RenewReply, RenewRequest
from covey_hil.testing.agent_world import DEVICE, TRUST
from covey_server.fleet.ca import FleetCA

FOLDER = "identity"
_LIFE_DAYS = 90
_PLAYED = "https://fleet.example"
# Nothing listens there: who is of this server reaches nothing but the broker.
OUT_OF_REACH = "https://127.0.0.1:1"


def _authority() -> FleetCA:
    with tempfile.TemporaryDirectory() as folder:
        return FleetCA.load_or_create(Path(folder), 0)


# Made when the zygote begins: all its devices are of one fleet.
AUTHORITY = _authority()


def enrol(state: Path, now_ms: int, server: str = _PLAYED) -> None:
    key, request = make_key_and_request(None, DEVICE)
    response = EnrolResponse(
        device=DEVICE,
        certificate_pem=AUTHORITY.sign_device_csr(request, DEVICE, now_ms, _LIFE_DAYS).pem,
        ca_pem=AUTHORITY.ca_pem,
        broker=Broker(host="broker.example", port=8883),
        trust=TRUST,
    )
    save_identity(state / FOLDER, server, key, response, None)


class _Asker(Asker):
    """Its own, but for the network: the server signs at once."""

    def ask(self, now_ms: int, *, expired: bool) -> Outcome:
        del expired
        try:
            kept = self.credentials.key_to_ask_with()
            key_pem, request = make_key_and_request(kept, self.device)
            if key_pem != kept:
                self.credentials.ask_with(key_pem)
            certificate = AUTHORITY.sign_device_csr(request, self.device, now_ms, _LIFE_DAYS).pem.encode()
            check(certificate, key_pem, (self.folder / CA).read_bytes(), self.device, now_ms)
        except EnrolmentError as error:
            return Failed(str(error))
        except OSError as error:
            return Failed(f"the identity cannot be used: {error}")
        return Granted(key_pem, certificate)


def _by_broker(clock: Callable[[], int], tell: Callable[[RenewRequest], None]) -> RenewalRelay:
    """A server that answers each request twice, after another one's answer has come."""

    def send(request: RenewRequest) -> bool:
        tell(request)
        certificate = AUTHORITY.sign_device_csr(request.csr_pem, DEVICE, clock(), _LIFE_DAYS).pem
        relay.take(RenewReply(id="another", status=403, detail="not for this one"))
        for _ in range(2):
            relay.take(RenewReply(id=request.id, status=200, certificate_pem=certificate))
        return True

    relay = RenewalRelay(send, wait_s=0.0)
    return relay


class Keeper:
    """The renewal of one run of the agent, and its link. `tell` hears what the server hears. Raises `AgentError` where the identity cannot be
    read."""

    def __init__(self, settings: Settings, clock: Callable[[], int], tell: Callable[[RenewRequest], None]) -> None:
        folder = settings.state / FOLDER
        server = load_identity(folder).server
        self._credentials = Credentials(folder)
        asker = _Asker if server == _PLAYED else Asker
        self._up = False
        self.renewal = Renewal(
            DEVICE,
            settings.state,
            self._credentials,
            asker(DEVICE, server, folder, self._credentials, _by_broker(clock, tell).ask),
            clock=clock,
            draw=Random(7),  # noqa: S311  # how long a pause is
            try_out=self._disconnect,
            first_s=settings.retry_first_s,
            most_s=settings.retry_most_s,
            begin=lambda work: work(),
        )

    def _disconnect(self) -> None:
        self._up = False

    def round(self, now: float) -> None:
        if not self._up:
            try:
                trial = self._credentials.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), trial=True)
            except OSError:
                pass  # a disk that cannot be read: the link tries again
            else:
                self._up = True
                self.renewal.connected(now, trial=trial, refused=False)
        self.renewal.tick(now)


def is_renewed(state: Path) -> bool:
    try:
        return (state / FOLDER / RENEWED).exists() and not (state / FOLDER / NEXT).exists()
    except OSError:  # the fault may hit the rig's own look
        return False


def whole(state: Path) -> Iterator[str]:
    """A certificate and its key are in use, and fit each other."""
    try:
        pair = Credentials(state / FOLDER).in_use
        pair.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        check(
            pair.certificate.read_bytes(),
            pair.key.read_bytes(),
            AUTHORITY.ca_pem.encode(),
            DEVICE,
            pair.read().begins_ms,
        )
    except (OSError, ValueError, EnrolmentError) as error:
        yield f"the identity does not work: {error}"


def tidy(state: Path) -> Iterator[str]:
    """The new pair alone is there."""
    found = {path.name for path in (state / FOLDER).iterdir()}
    if found != {CA, ENROLMENT, RENEWED}:
        yield f"in {FOLDER}/: {sorted(found)}"
