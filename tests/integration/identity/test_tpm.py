"""A device whose keys are in a TPM: swtpm, a TPM 2.0 in software, behind a resource manager, as the kernel has one for a real one."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from covey_agent.credentials import RENEWED, Credentials
from covey_hil.processes import Child
from covey_server.fleet.ports import free_port
from tests.integration.identity.conftest import DEVICE, Place, until

_PROGRAMS = ("swtpm", "tpm2-abrmd", "dbus-daemon", "openssl")
_MODULES = ("*/ossl-modules/tpm2.so", "*/libtss2-tcti-swtpm.so.0", "*/libtss2-tcti-tabrmd.so.0")
_PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin"
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"""

pytestmark = pytest.mark.skipif(
    not all(shutil.which(name, path=_PLACES) for name in _PROGRAMS)
    or not all(any(Path("/usr/lib").glob(name)) for name in _MODULES),
    reason="no TPM in software is installed (`./dev setup --test` installs it)",
)


def two_free_ports() -> int:
    """The first of two that follow each other."""
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port


@contextmanager
def tpm(folder: Path) -> Iterator[dict[str, str]]:
    """A new one; the environment by which it is found."""
    folder.mkdir()
    port = two_free_ports()
    control = port + 1  # where the TPM's library looks for it
    bus = f"unix:path={folder}/bus"
    (folder / "bus.conf").write_text(_BUS.format(path=folder / "bus"))
    found = {"DBUS_SESSION_BUS_ADDRESS": bus, "TPM2OPENSSL_TCTI": "tabrmd:bus_type=session"}
    where = ["--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={control}"]
    state = ["--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
    manager = ["tpm2-abrmd", "--session", f"--tcti=swtpm:host=127.0.0.1,port={port}"]
    if os.geteuid() == 0:
        manager.append("--allow-root")
    children = [
        Child("swtpm", ["swtpm", "socket", "--tpm2", *state, *where], folder / "swtpm.log"),
        Child("dbus", ["dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork"], folder / "dbus.log"),
        Child("abrmd", manager, folder / "abrmd.log", {**found, "PATH": _PLACES}),
    ]

    def listens() -> bool:
        # Looked at from outside: it takes whoever connects for its only client.
        held = psutil.net_connections("tcp")
        return {port, control} <= {one.laddr.port for one in held if one.laddr and one.status == psutil.CONN_LISTEN}

    def answers() -> bool:
        words = ["openssl", "list", "-provider", "tpm2", "-providers"]
        done = subprocess.run(words, env={**os.environ, **found}, capture_output=True, timeout=20, check=False)
        return done.returncode == 0

    try:
        children[0].start()
        until("the TPM", listens)
        children[1].start()
        until("the bus", lambda: (folder / "bus").exists())
        children[2].start()
        until("the TPM's resource manager", answers, 20.0)
        yield found
    finally:
        for child in reversed(children):
            with contextlib.suppress(Exception):
                child.stop()


def test_keys_never_leave_the_tpm_and_are_renewed_in_it(make: Callable[..., Place], tmp_path: Path) -> None:
    with tpm(tmp_path / "tpm") as environment, tpm(tmp_path / "another") as another:
        place = make(40.0, enrol=False)
        place.environment = environment
        place.enrol("--key", "tpm2")
        identity = place.state / "identity"
        assert (identity / "key.pem").read_bytes().startswith(b"-----BEGIN TSS2 PRIVATE KEY-----")
        first = Credentials(identity).in_use.read()
        place.start_agent()
        until("a connection, by mutual TLS", lambda: place.device()["online"])
        until("a renewal", lambda: place.renewals() >= 1)
        renewed = (identity / RENEWED).read_bytes()
        assert b"TSS2 PRIVATE KEY" in renewed
        assert b"BEGIN PRIVATE KEY" not in renewed
        assert Credentials(identity).in_use.read().ends_ms > first.ends_ms
        until("a connection with it", lambda: place.device()["online"])
        assert (
            place.command("doctor").stdout.count("FAIL") <= 2
        )  # no runtime has to be there, and the certificate is short
        place.stop_agent()
        # The folder alone is of no use: on another machine nobody connects with it.
        place.environment = another
        place.start_agent()
        until("its end", lambda: place.agent is not None and not place.agent.alive, 30.0)
        assert "cannot be used" in place.log()
        assert f"device {DEVICE}" in place.log()


def test_without_a_tpm_the_command_says_so(make: Callable[..., Place], tmp_path: Path) -> None:
    place = make(3600.0, enrol=False)
    place.environment = {"TPM2OPENSSL_TCTI": "swtpm:host=127.0.0.1,port=1"}
    with place.client as client:
        token = client.create_claim_token(device=DEVICE)["token"]
    words = ("--server", place.told["url"], "--token", token)
    done = place.command("enroll", *words, "--key", "tpm2")
    assert done.returncode == 1
    assert done.stderr.startswith("covey-agent: the TPM cannot be used: openssl genpkey:")
    assert len(done.stderr.splitlines()) == 1
    # The token is as good as before.
    assert place.command("enroll", *words).returncode == 0
    assert not list(tmp_path.glob("state/*.tmp"))
