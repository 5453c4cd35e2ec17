"""Operators and devices as they are: the commands `covey-server keys` and `covey-agent tuf`, each run with the words one would type."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from covey_agent.cli import main as agent_main
from covey_server.cli import main as server_main

PASSPHRASE = "a long passphrase"


@dataclass
class Site:
    """A data folder, a bag of offline keys, and devices that read the repository from its folder."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def metadata(self) -> Path:
        return self.data / "releases" / "metadata"

    def keys(self, *words: str | Path, code: int = 0) -> str:
        """`covey-server keys …` on this data folder where the command takes one; its output."""
        name, *rest = map(str, words)
        if name not in ("new", "public", "sign"):
            rest += ["--data", str(self.data)]
        else:
            rest += ["--secret-file", str(self.secret)]
        self.capture.readouterr()
        assert server_main(["keys", name, *rest]) == code
        told = self.capture.readouterr()
        return told.out if code == 0 else told.err

    @property
    def secret(self) -> Path:
        path = self.folder / "secret"
        if not path.exists():
            path.write_text(PASSPHRASE + "\n")
        return path

    def offline_key(self, name: str) -> Path:
        """A key under a passphrase, made away from the server; the file to hand over lies beside it."""
        path = self.folder / "bag" / f"{name}.pem"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            self.keys("new", path)
        return path

    def public(self, name: str) -> Path:
        return self.offline_key(name).with_suffix(".pub")

    def sign(self, document: Path, *names: str) -> None:
        for name in names:
            self.keys("sign", document, "--key", self.offline_key(name))

    def device(self, name: str) -> Device:
        return Device(self, self.folder / "devices" / name)


@dataclass
class Device:
    """One that began with the root that was current on its first day."""

    site: Site
    folder: Path

    def init(self, version: int = 1) -> Device:
        root = self.site.metadata / f"{version}.root.json"
        assert agent_main(["tuf", "--metadata-dir", str(self.folder), "init", str(root)]) == 0
        return self

    def refresh(self) -> int:
        words = ["--metadata-url", f"file://{self.site.metadata}", "refresh"]
        return agent_main(["tuf", "--metadata-dir", str(self.folder), *words])

    def root_version(self) -> int:
        return int(json.loads((self.folder / "root.json").read_bytes())["signed"]["version"])


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, capsys)


@pytest.fixture
def production(site: Site) -> Site:
    """After the ceremony: root and targets 2 of 3 offline, one publisher on the server."""
    hold_ceremony(site)
    return site


def hold_ceremony(site: Site, publisher: Callable[[Site], Path] | None = None) -> None:
    names = ("alice", "bob", "carol")
    roots = [word for name in names for word in ("--root", str(site.public(name)))]
    if publisher is None:
        key = site.folder / "release-desk.pem"
        site.keys("new", key, "--no-passphrase")
        pub = key.with_suffix(".pub")
    else:
        pub = publisher(site)
    documents = site.folder / "documents"
    site.keys("ceremony", *roots, "--publisher", f"digits={pub}", "--out", documents)
    for document in ("root.json", "targets.json"):
        site.sign(documents / document, "alice", "carol")
    site.keys("publish", documents / "root.json", documents / "targets.json")
