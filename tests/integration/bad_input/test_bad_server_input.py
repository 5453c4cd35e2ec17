"""Bad input to `covey-server`: settings, data folders, databases, brokers and disks, beside a server that goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from covey_hil.fleet import LocalServer
from covey_hil.processes import Child, command, wait_for
from covey_server.fleet.ports import free_port
from tests.integration.bad_input.conftest import MODEL, check_it_still_works, only_line_of

if TYPE_CHECKING:
    from tests.integration.bad_input.conftest import Site

pytestmark = pytest.mark.timeout(240)

NOBODY = 65534
SERVERS: list[tuple[str, str, int, str]] = [
    (
        "folder in use",
        "--data {data} --listen 127.0.0.1:0",
        3,
        "another server runs on the data folder {data} (process",
    ),
    ("port in use", "--data new --listen {address}", 3, "is in use by another program"),
    (
        "broker's port in use",
        "--data new --broker-port {broker_port}",
        3,
        "the broker's port {broker_port} on 127.0.0.1",
    ),
    ("folder is a file", "--data a-file", 1, "the data folder a-file cannot be used: it is no folder"),
    ("no such option", "--data new --frobnicate 1", 2, "unrecognized arguments: --frobnicate 1"),
    ("no number", "--data new --broker-port many", 2, "setting broker_port: 'many' is not a whole number"),
    ("out of bounds", "--data new --worker-nice 99", 2, "setting worker_nice: 99 is not between 0 and 19"),
    ("no database", "--data new --database-url nonsense", 1, "database_url is not a database URL"),
    ("no file of settings", "--data new --config nothing.toml", 2, "setting config: nothing.toml cannot be read"),
]


@pytest.mark.parametrize(("words", "code", "said"), [pytest.param(*row[1:], id=row[0]) for row in SERVERS])
def test_servers(site: Site, words: str, code: int, said: str) -> None:
    port = [] if "--listen" in words else ["--listen", "127.0.0.1:0"]
    done = site.run("covey-server", "run", *words.split(), *port, "--log-level", "error")
    only_line_of(done, code, said.format(**site.names))
    site.server.child.check()


def test_settings_from_environment_and_file(site: Site) -> None:
    words = ("covey-server", "run", "--data", "new", "--listen", "127.0.0.1:0")
    done = site.run(*words, environment={"COVEY_SERVER_LISTN": "127.0.0.1:0"})
    only_line_of(done, 2, "setting listn: there is no such setting (from the environment variable COVEY_SERVER_LISTN)")
    (site.folder / "bad.toml").write_text("listen = [")
    only_line_of(site.run(*words, "--config", "bad.toml"), 2, "setting config: bad.toml is not TOML")


def not_a_database(database: Path) -> None:
    database.write_bytes(b"this is no database" * 500)


def pages_lost(database: Path) -> None:
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xa5" * (size - 1024))


@pytest.mark.parametrize("damage", [not_a_database, pages_lost])
def test_a_corrupt_database(site: Site, damage: Callable[[Path], None]) -> None:
    """The server refuses to start on it, and leaves it as it is for whoever can mend it or has a backup."""
    data = site.folder / damage.__name__
    data.mkdir()
    with sqlite3.connect(f"file:{site.names['data']}/covey.db?mode=ro", uri=True) as source:
        copy = sqlite3.connect(data / "covey.db")
        source.backup(copy)
        copy.close()
    damage(data / "covey.db")
    damaged = (data / "covey.db").read_bytes()
    done = site.run("covey-server", "run", "--data", data.name, "--listen", "127.0.0.1:0", "--log-level", "error")
    only_line_of(done, 1, "the database sqlite:///", "covey.db cannot be opened: ")
    assert (data / "covey.db").read_bytes() == damaged


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that an unprivileged user may enter and not write, below folders that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="covey-"))
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def unprivileged() -> Sequence[str]:
    """The words before a command that is to run without privileges; skips where that cannot be."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv, to run as another user, is not installed")
    words = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    if subprocess.run([*words, command("covey-server"), "--version"], capture_output=True, check=False).returncode:
        pytest.skip("another user may not read this checkout")
    return words


def test_a_data_folder_that_is_not_writable(site: Site, closed_folder: Path) -> None:
    before = unprivileged()
    words = [*before, command("covey-server"), "run", "--listen", "127.0.0.1:0", "--data"]
    for data in (closed_folder, closed_folder / "data"):
        done = site.run(*words, str(data))
        only_line_of(done, 1, f"the data folder {data} cannot be used: Permission denied", program="covey-server")


@pytest.fixture
def without_mosquitto(tmp_path: Path) -> Sequence[str]:
    """The words before a command that is to find no mosquitto: in a mount namespace of its own, nothing lies over it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount namespace needs root and unshare")
    nothing = tmp_path / "nothing"
    nothing.touch()
    places = [
        found
        for folder in ("", "/usr/sbin", "/usr/local/sbin")
        if (found := shutil.which("mosquitto", path=folder or None))
    ]
    mounts = "".join(f"mount --bind {nothing} {place} && " for place in dict.fromkeys(places))
    return ("unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh")


@pytest.mark.root
def test_no_broker_at_all(site: Site, without_mosquitto: Sequence[str]) -> None:
    hidden = site.folder / "hidden"
    hidden.mkdir()
    (hidden / "amqtt.py").write_text("raise ModuleNotFoundError(\"No module named 'amqtt'\", name='amqtt')\n")
    words = [command("covey-server"), "run", "--data", "brokerless", "--listen", "127.0.0.1:0", "--log-level", "error"]
    done = site.run(*without_mosquitto, *words, environment={"PYTHONPATH": str(hidden)})
    only_line_of(
        done, 1, "no broker: install mosquitto (Debian, Ubuntu: apt install mosquitto)", program="covey-server"
    )


@pytest.mark.root
def test_the_trial_broker_is_announced(site: Site, without_mosquitto: Sequence[str]) -> None:
    log = site.folder / "trial.log"
    data = site.folder / "trial"
    words = [command("covey-server"), "run", "--data", str(data), "--listen", "127.0.0.1:0", "--local-worker", "false"]
    server = Child("trial", [*without_mosquitto, *words], log)
    server.start()
    try:
        wait_for("the server", lambda: not server.alive or (data / "server.json").exists(), 40)
    finally:
        code = server.stop()
    assert code == 0
    [line] = [line for line in log.read_text().splitlines() if "TRIAL broker" in line]
    assert "mosquitto is not installed" in line
    assert "without TLS" in line
    assert "Traceback" not in log.read_text()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(file: Path) -> None:
    """Until the disk is full."""
    with file.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while opened.write(bytes(4096)):
            pass


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_while_pushing(site: Site) -> None:
    full = "the server's disk is full; nothing was kept"
    with small_disk(site.folder / "disk") as disk:
        server = LocalServer(
            disk / "data", site.folder / "disk.log", port=free_port(), settings={"local_worker": "false"}
        )
        server.start()
        try:
            large = site.folder / "large.onnx"
            large.write_bytes(os.urandom(32 << 20))

            def push(version: str, file: str) -> subprocess.CompletedProcess[str]:
                return site.run("covey", "model", "push", MODEL, version, file, environment=server.environment)

            only_line_of(push("1.0", "large.onnx"), 1, f"the server's disk has no room for {32 << 20} bytes")
            assert list((disk / "data" / "uploads").iterdir()) == []
            assert push("1.0", "{good}").returncode == 0
            # Not a byte is left: neither files nor rows can be written, but what is there can be read.
            ballast = disk / "ballast"
            fill(ballast)
            only_line_of(push("1.1", "{other}"), 1, full)
            done = site.run("covey", "device", "token", environment=server.environment)
            only_line_of(done, 1, full)
            versions = server.client().model(MODEL)["versions"]
            assert [one["version"] for one in versions] == ["1.0"]
            ballast.unlink()
            assert push("1.1", "{other}").returncode == 0
        finally:
            code = server.child.stop()
        assert code == 0
        assert "Traceback" not in (site.folder / "disk.log").read_text()


# --- and after all that: nothing was lost -----------------------------------------------------------------------------


def test_afterwards_everything_still_works(site: Site) -> None:
    """The last test of this file, on purpose."""
    check_it_still_works(site)
