"""The device's certificate and key on disk: the pair that it uses, the one on trial, and the key of a request that is under way.

`key.pem` and `certificate.pem` are of enrolment. What renewal brings is one file, key and certificate, so that one rename changes both: `next.pem`
is on trial until the broker has taken it, `renewed.pem` counts in place of the first two. `asking.pem` is a key that the server may have
given a certificate for, or an operator may be thinking about; it stays until that is settled.

After a kill at any call a pair that works is in use: nothing of it is touched before the other one has connected.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import ssl
import threading
from pathlib import Path
from typing import NamedTuple

from covey_agent import durable, keys
from covey_agent.core.renewal import Certificate
from covey_agent.errors import AgentError
from covey_agent.identity import CERTIFICATE, KEY

log = logging.getLogger(__name__)

ASKING, NEXT, RENEWED = "asking.pem", "next.pem", "renewed.pem"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_MILLISECOND = datetime.timedelta(milliseconds=1)


class Pair(NamedTuple):
    """Where certificate and key are; both in the same file, perhaps."""

    certificate: Path
    key: Path

    @property
    def place(self) -> str:
        """Where the key is (`keys.where`). Raises `OSError`, `ValueError` and `AgentError`."""
        return keys.where(self.key.read_bytes())

    def prepare(self) -> None:
        """Before the context is made: a TPM or a token may have to help with the key. Raises as `place` does."""
        keys.prepare(self.key.read_bytes())

    def load_into(self, context: ssl.SSLContext) -> None:
        """Handshakes that begin from now on show it. Raises `OSError`, of which `ssl.SSLError` is one."""
        try:
            self.prepare()
        except (AgentError, ValueError) as error:
            raise OSError(str(error)) from error
        context.load_cert_chain(self.certificate, self.key)

    def read(self) -> Certificate:
        """Raises `OSError`, or `ValueError` if it is no certificate."""
        return read_certificate(self.certificate.read_bytes())


def read_certificate(pem: bytes) -> Certificate:
    """Of the first one in it. Raises `ValueError`."""
    # Imported when it is needed: a daemon at rest does without.
    from cryptography import x509

    found = x509.load_pem_x509_certificate(pem[max(pem.find(b"-----BEGIN CERTIFICATE"), 0) :])
    begins, ends = ((end - _EPOCH) // _MILLISECOND for end in (found.not_valid_before_utc, found.not_valid_after_utc))
    return Certificate(found.serial_number, begins, ends)


class Credentials:
    """Of one identity's folder. All but `load_into`, `next_key` and `sweep_token` is for one thread alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._making = threading.Lock()  # a key that is in the token already, and in no file yet

    @property
    def in_use(self) -> Pair:
        renewed = self._folder / RENEWED
        if renewed.exists():
            return Pair(renewed, renewed)
        return Pair(self._folder / CERTIFICATE, self._folder / KEY)

    @property
    def on_trial(self) -> Pair | None:
        path = self._folder / NEXT
        return Pair(path, path) if path.exists() else None

    def load_into(self, context: ssl.SSLContext, *, trial: bool) -> bool:
        """The pair on trial if that is wanted and there is one, else the one in use; whether it was the first. Raises `OSError`."""
        pair = self.on_trial if trial else None
        if pair is not None:
            try:
                pair.load_into(context)
            except FileNotFoundError:
                pass  # it has passed in this very moment
            except OSError as error:
                log.error("the new certificate cannot be read: %s", error)
            else:
                return True
        self.in_use.load_into(context)
        return False

    def next_key(self, device: str) -> tuple[bytes, str]:
        """The key to ask with, stored: one that was not settled, or a new one where the one in use is; and its certificate request. Raises `OSError`,
        `ValueError` and `AgentError`."""
        with self._making:
            kept = self.key_to_ask_with()
            key_pem, csr_pem = keys.make_key_and_request(kept, device, self.in_use.place)
            if key_pem != kept:
                self.ask_with(key_pem)
            return key_pem, csr_pem

    def key_to_ask_with(self) -> bytes | None:
        """The key of a request that was not settled; None: there is none, or it cannot be read."""
        try:
            return (self._folder / ASKING).read_bytes()
        except OSError:
            return None

    def ask_with(self, key_pem: bytes) -> None:
        """Raises `OSError`."""
        durable.write(self._folder / ASKING, key_pem, mode=0o600)

    def try_out(self, key_pem: bytes, certificate_pem: bytes) -> None:
        """Put it on trial. Raises `OSError`; then nothing has changed."""
        durable.write(self._folder / NEXT, key_pem + certificate_pem, mode=0o600)
        self._remove(ASKING)

    def take_over(self) -> None:
        """The pair on trial is in use from now on, also after a power cut. Raises `OSError`; then do it again."""
        if self.on_trial is not None:
            self._remove(ASKING)
            (self._folder / NEXT).replace(self._folder / RENEWED)
        durable.sync_folder(self._folder)
        self.tidy()

    def give_up(self) -> None:
        """The pair in use stays; the one on trial is forgotten. Raises `OSError`."""
        (self._folder / NEXT).unlink(missing_ok=True)
        durable.sync_folder(self._folder)

    def tidy(self) -> None:
        """Remove what a kill has left, and what counts no longer. Never raises."""
        with contextlib.suppress(OSError):
            durable.sweep(self._folder)
            if (self._folder / RENEWED).exists():
                self._remove(KEY, CERTIFICATE)
            if (self._folder / NEXT).exists():
                self._remove(ASKING)

    @property
    def in_token(self) -> bool:
        """Whether the key in use is in a PKCS#11 token; also False where it cannot be read."""
        try:
            return self.in_use.place.startswith(keys.TOKEN)
        except (OSError, ValueError, AgentError):
            return False

    def sweep_token(self) -> None:
        """A key goes from its token when no file stands for it any more, and none would after a power cut. What cannot be read now keeps them all.
        Never raises; waits for the token, which may take long."""
        try:
            with self._making:
                in_use = self.in_use.key.read_bytes()
                durable.sync_folder(self._folder)
                # In the order in which a key goes from one to the next: none slips by meanwhile.
                others = (self._folder / name for name in (KEY, ASKING, NEXT, RENEWED))
                keys.sweep(in_use, [path.read_bytes() for path in others if path.exists()])
        except (OSError, ValueError, AgentError) as error:
            log.warning("the token's old keys stay for now: %s", error)

    def _remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
