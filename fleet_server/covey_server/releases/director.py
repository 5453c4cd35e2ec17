"""The key for orders: one file, `director.pem`, that the server signs with; which key that must be, root says."""

from __future__ import annotations

from securesystemslib.signer import Key
from tuf.api.metadata import Root

from covey_server.fleet.durable import write_durably
from covey_server.releases.policy import DIRECTOR
from covey_server.releases.releases import Releases

DIRECTOR_FILE = "director.pem"


def new_director(releases: Releases) -> Key:
    """The key for the next root, made once: it becomes the server's when that root is published."""
    number = releases.shelf.newest_root() + 1
    name = f"director-{number}"
    return releases.keyring.named(name) or releases.keyring.make(name)


def install_director(releases: Releases, root: Root) -> bool:
    """Make a key that the root names the one that the server signs orders with; whether that is another than before."""
    named = set(root.unrecognized_fields[DIRECTOR]["keys"])
    place = releases.keyring.folder / DIRECTOR_FILE
    for keyid in sorted(named):
        record = releases.keyring.record(keyid)
        if record is None or not record.uri.startswith("file:"):
            continue
        private = (releases.keyring.folder / record.uri.removeprefix("file:")).read_bytes()
        if place.exists() and place.read_bytes() == private:
            return False
        write_durably(place, private, 0o600)
        return True
    return False
