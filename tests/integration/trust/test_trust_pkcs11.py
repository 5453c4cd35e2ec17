"""Keys in a token: one of root's three and the publisher's lie in SoftHSM, and never in a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.trust.conftest import Site

LIBRARIES = [Path("/usr/lib/softhsm/libsofthsm2.so"), Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")]
PIN = "123456"

pytestmark = pytest.mark.skipif(
    shutil.which("softhsm2-util") is None or not any(path.exists() for path in LIBRARIES),
    reason="SoftHSM is not installed (`./dev setup --test` installs it)",
)

MAKE_KEYS = """
import os, pkcs11
token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label="covey")
with token.open(rw=True, user_pin=os.environ["PIN"]) as session:
    curve = session.create_domain_parameters(
        pkcs11.KeyType.EC,
        {pkcs11.Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters("secp256r1")},
        local=True,
    )
    for number in (1, 2):
        curve.generate_keypair(store=True, id=bytes([number]), label=f"key-{number}")
"""

# What the operators type and the server does, in one process: a PKCS#11 library is initialised once for all of it.
STORY = """
import sys, time
from pathlib import Path
from covey_server.cli import main
from covey_server.registry.keys import SigningKeys
from covey_server.releases.bootstrap import open_releases
from covey_server.releases.errors import KeysMissing
from covey_server.releases.release import Release
from covey_server.settings import Settings

folder = Path(sys.argv[1])
data, pin, card, desk = (str(folder / name) for name in ("data", "pin", "card.pub", "desk.pub"))
bob, carol = (folder / "bag" / f"{name}.pem" for name in ("bob", "carol"))
documents = [str(folder / name) for name in ("root.json", "targets.json")]

def keys(*words):
    assert main(["keys", *map(str, words)]) == 0, words

def release(version):
    settings = Settings(data=Path(data), production=True, key_secret_file=pin)
    releases = open_releases(settings, lambda: time.time_ns() // 10**6, SigningKeys.load_or_create(Path(data) / "keys"))
    releases.release([Release("digits", version, "tflite-int8", b"manifest", {"runtime": "tflite"})])
    return [key for row in releases.status() if row.role == "models~digits" for key in row.keys]

keys("public", "hsm:1?label=covey", card, "--secret-file", pin)
keys("public", "hsm:2?label=covey", desk, "--secret-file", pin)
roots = [word for file in (card, bob.with_suffix(".pub"), carol.with_suffix(".pub")) for word in ("--root", file)]
keys("ceremony", *roots, "--publisher", f"digits={desk}", "--out", folder, "--data", data)
for document in documents:
    keys("sign", document, "--key", card, "--secret-file", pin)
    keys("sign", document, "--key", bob, "--secret-file", folder / "secret")
keys("publish", *documents, "--data", data, "--key-secret-file", pin)
print(release("1.0"))
Path(pin).write_text("000000")
try:
    release("1.1")
except KeysMissing as error:
    print("refused:", error.detail)
"""


@pytest.fixture
def token(tmp_path: Path) -> Mapping[str, str]:
    """The environment in which a token named covey holds two P-256 keys."""
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    library = next(path for path in LIBRARIES if path.exists())
    environment = {**os.environ, "SOFTHSM2_CONF": str(configuration), "PYKCS11LIB": str(library), "PIN": PIN}
    words = ["softhsm2-util", "--init-token", "--free", "--label", "covey", "--pin", PIN, "--so-pin", "654321"]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", MAKE_KEYS], env=environment, check=True, capture_output=True)
    return environment


def test_a_root_key_and_a_publisher_in_a_token(site: Site, token: Mapping[str, str]) -> None:
    (site.folder / "pin").write_text(PIN)
    for name in ("bob", "carol"):
        site.offline_key(name)
    words = [sys.executable, "-c", STORY, str(site.folder)]
    done = subprocess.run(words, env=token, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, keys, refusal = done.stdout.splitlines()
    assert keys == "[('desk', 'hsm:2?label=covey')]"
    assert refusal.startswith("refused: models~digits needs 1 signatures and got 0")
    assert site.device("one").init().refresh() == 0
    assert not list(site.folder.rglob("card*.pem"))
