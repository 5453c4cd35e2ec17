"""A repository of releases on a folder of its own, its time, and two clients: python-tuf's and ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface
from tuf.ngclient import Updater as TheirUpdater
from tuf.ngclient._internal import trusted_metadata_set

from covey_agent.tuf.folder import MetadataFolder
from covey_agent.tuf.source import FolderSource
from covey_agent.tuf.updater import Updater as OurUpdater
from covey_server.fleet import durable
from covey_server.registry.keys import SigningKeys
from covey_server.releases.bootstrap import create_for_development
from covey_server.releases.keyring import Keyring
from covey_server.releases.policy import Policy
from covey_server.releases.release import Release
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import Shelf

START_MS = 1_800_000_000_000


@dataclass
class Clock:
    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_ms / 1000, UTC)

    def pass_(self, **parts: float) -> None:
        self.now_ms += int(timedelta(**parts).total_seconds() * 1000)


class _FolderFetcher(FetcherInterface):
    """python-tuf's client reads the shelf's folder as if a web server gave it."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url.removeprefix("file://"))
        if not path.is_file():
            raise DownloadHTTPError("not found", 404)
        yield path.read_bytes()


@dataclass
class Site:
    """The server's side and two devices that began with its first root."""

    releases: Releases
    clock: Clock
    folder: Path
    keys: SigningKeys

    @property
    def shelf(self) -> Path:
        return self.releases.shelf.folder

    def theirs(self, name: str = "theirs", root: bytes | None = None) -> TheirUpdater:
        """python-tuf's client, refreshed at the site's time."""
        folder = self.folder / name
        for part in (folder, folder / "targets"):
            part.mkdir(exist_ok=True)
        with patch.object(trusted_metadata_set, "datetime", _Frozen(self.clock)):
            updater = TheirUpdater(
                str(folder),
                f"file://{self.shelf}/metadata/",
                str(folder / "targets"),
                f"file://{self.shelf}/targets/",
                fetcher=_FolderFetcher(),
                bootstrap=root or self.first_root,
            )
            updater.refresh()
        return updater

    def ours(self, name: str = "ours", root: bytes | None = None) -> OurUpdater:
        """Our client, refreshed at the site's time."""
        folder = MetadataFolder(self.folder / name)
        folder.path.mkdir(exist_ok=True)
        source = FolderSource(self.shelf / "metadata")
        updater = OurUpdater(folder, source, self.clock.now, embedded=root or self.first_root)
        updater.refresh()
        return updater

    @property
    def first_root(self) -> bytes:
        return self.releases.shelf.metadata("1.root.json")

    def release(
        self, model: str = "digits", version: str = "1.0", target: str = "tflite-int8", size: int = 20
    ) -> Release:
        build = release_of(model, version, target, size)
        self.releases.release([build])
        return build

    def check(self, build: Release) -> TargetFile:
        """Both clients find the build, agree on it, and get its very bytes."""
        theirs = self.theirs()
        found = theirs.get_targetinfo(build.path)
        assert found is not None
        assert Path(theirs.download_target(found)).read_bytes() == build.manifest
        ours = self.ours()
        target = ours.find(build.path)
        assert target == found
        place = self.folder / "downloaded"
        ours.download(target, FolderSource(self.shelf / "targets"), place)
        assert place.read_bytes() == build.manifest
        return target

    def counter(self, build: Release) -> int:
        return int(self.ours().find(build.path).custom["covey"]["release"])

    def again(self, **changes: object) -> Site:
        """The same folder as another process would open it."""
        keyring = Keyring.load(self.releases.keyring.folder)
        releases = Releases(Shelf(self.shelf), keyring, self.releases.policy, self.clock)
        return replace(self, releases=releases, **changes)  # type: ignore[arg-type]


class _Frozen:
    """Stands in for the module `datetime` in python-tuf's client, which has no hook for a clock."""

    timezone = timezone

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.datetime = self

    def now(self, _: object) -> datetime:
        return self._clock.now


def release_of(model: str = "digits", version: str = "1.0", target: str = "tflite-int8", size: int = 20) -> Release:
    manifest = f"{model} {version} {target} ".encode().ljust(size, b".")
    return Release(model, version, target, manifest, {"runtime": target.split("-")[0]})


def open_site(folder: Path, policy: Policy | None = None) -> Site:
    clock = Clock()
    releases = Releases(Shelf(folder / "releases"), Keyring.load(folder / "keys"), policy or Policy(), clock)
    keys = SigningKeys(Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())
    create_for_development(releases, keys)
    return Site(releases, clock, folder, keys)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return open_site(tmp_path)


@contextlib.contextmanager
def cut_at(limit: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The power fails before the file of this number is written."""
    real, written = durable.write_durably, 0

    def write(path: Path, data: bytes, mode: int = 0o644) -> None:
        nonlocal written
        if written == limit:
            raise Cut
        written += 1
        real(path, data, mode)

    with monkeypatch.context() as patched:
        patched.setattr("covey_server.releases.shelf.write_durably", write)
        yield


class Cut(BaseException):
    """The power is gone."""
