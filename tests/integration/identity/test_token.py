"""What a PKCS#11 token does for a device, and what it is not asked for: SoftHSM, a token in software."""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
from pathlib import Path
from random import Random

import pkcs11
import pytest
from cryptography import x509

from covey_agent.credentials import ASKING, NEXT, Credentials
from covey_agent.identity import KEY
from covey_agent.keys import make_key_and_request
from covey_agent.pkcs11 import handshake, token
from covey_agent.pkcs11.address import Address
from covey_agent.pkcs11.key_file import address_of, point_of, write
from covey_agent.pkcs11.token import TokenError
from covey_agent.renewal import Renewal
from covey_agent.renewing import Asker
from covey_hil.testing.authority import Authority
from covey_hil.testing.softhsm import PIN, ids, is_installed, objects
from tests.integration.identity.conftest import DEVICE, until

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="SoftHSM is not installed (`./dev setup --test` installs it)"
)


# --- the token --------------------------------------------------------------------------------------------------------


def test_a_key_is_made_in_the_token_and_cannot_be_taken_out(where: Address) -> None:
    address, point = token.make(where)
    assert len(objects(where)) == 2
    assert ids(where) == {address.id}
    with pkcs11.lib(where.module).get_token(token_label=where.token).open(user_pin=PIN) as session:
        private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, id=address.id)
        assert private[pkcs11.Attribute.SENSITIVE]
        assert private[pkcs11.Attribute.NEVER_EXTRACTABLE]
        with pytest.raises(pkcs11.exceptions.AttributeSensitive):
            _ = private[pkcs11.Attribute.VALUE]
    assert "does not give it away" in token.look(address)
    assert point_of(write(address, point)) == point


def test_its_certificate_request_is_signed_by_the_token(where: Address) -> None:
    key, pem = make_key_and_request(None, DEVICE, str(where))
    request = x509.load_pem_x509_csr(pem.encode())
    assert request.is_signature_valid
    # A key that is kept is used again; one of another place, or one that has gone, is not.
    assert make_key_and_request(key, DEVICE, str(where))[0] == key
    assert make_key_and_request(key, DEVICE)[0] != key
    token.sweep(address_of(key), ())
    assert make_key_and_request(key, DEVICE, str(where))[0] != key


def test_only_what_this_installation_made_and_no_file_stands_for_goes(where: Address, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    folder.mkdir()
    key = write(*token.make(where))
    in_use = address_of(key)
    tried, other = (write(*token.make(in_use)) for _ in range(2))
    stray, _ = token.make(in_use)  # killed before its file was written
    foreign, _ = token.make(where)  # of another device, by the same name
    (folder / KEY).write_bytes(key)
    (folder / NEXT).write_bytes(tried)
    credentials = Credentials(folder)
    everything = {in_use.id, address_of(tried).id, address_of(other).id, stray.id, foreign.id}
    assert ids(where) == everything
    # What cannot be read may stand for any of them.
    (folder / ASKING).mkdir()
    credentials.sweep_token()
    assert ids(where) == everything
    (folder / ASKING).rmdir()
    credentials.sweep_token()
    assert ids(where) == {in_use.id, address_of(tried).id, foreign.id}
    credentials.give_up()
    credentials.sweep_token()
    assert ids(where) == {in_use.id, foreign.id}
    renewed = write(*token.make(in_use))
    credentials.try_out(renewed, b"-----BEGIN CERTIFICATE-----\n")
    credentials.sweep_token()
    assert ids(where) == {in_use.id, address_of(renewed).id, foreign.id}
    credentials.take_over()
    credentials.sweep_token()
    assert ids(where) == {address_of(renewed).id, foreign.id}


def test_the_loop_waits_for_no_token(where: Address, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    folder.mkdir()
    key = write(*token.make(where))
    token.make(address_of(key))  # killed before its file was written
    (folder / KEY).write_bytes(key)
    credentials = Credentials(folder)
    renewal = Renewal(
        DEVICE,
        tmp_path,
        credentials,
        Asker(DEVICE, "https://fleet.example", folder, credentials),
        clock=lambda: 0,
        draw=Random(7),
        try_out=lambda: None,
        first_s=1.0,
        most_s=1.0,
    )
    busy, over = threading.Event(), threading.Event()

    def be_busy() -> None:
        with token.alone:
            busy.set()
            over.wait(30)

    thread = threading.Thread(target=be_busy)
    thread.start()
    assert busy.wait(10)
    renewal.start(0.0)
    assert thread.is_alive()
    over.set()
    thread.join()
    until("the stray key's end", lambda: ids(where) == {address_of(key).id})


def test_a_wrong_pin_is_tried_once(where: Address) -> None:
    address, _ = token.make(where)
    pin = Path(where.pin_source)
    pin.write_text("11111111\n")
    with pytest.raises(TokenError, match="does not take the PIN"):
        token.sign(address, bytes(32))
    for _ in range(20):
        with pytest.raises(TokenError, match="not tried again until that changes"):
            token.sign(address, bytes(32))
    pin.unlink()
    pin.write_text(PIN)
    pin.chmod(0o600)
    assert token.sign(address, bytes(32))


def test_what_is_wrong_with_a_token_is_one_line(where: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = Path(where.pin_source)
    for wrong, words in (
        (where._replace(token="nobody's"), "NoSuchToken"),
        (where._replace(module="/nowhere/token.so"), "cannot be used"),
        (where._replace(pin_source="/nowhere/pin"), "cannot be read: No such file"),
    ):
        with pytest.raises(TokenError, match=words) as found:
            token.make(wrong)
        assert "\n" not in str(found.value)
    address, _ = token.make(where)
    with pytest.raises(TokenError, match="not in the PKCS#11 token 'token .*' any more"):
        token.sign(address._replace(id=bytes(16)), bytes(32))
    pin.chmod(0o604)
    with pytest.raises(TokenError, match="can be read by everybody"):
        token.sign(address, bytes(32))
    for content in (b"", b"\n", b"\xff", b"1" * 300):
        pin.write_bytes(content)
        pin.chmod(0o600)
        with pytest.raises(TokenError):
            token.sign(address, bytes(32))
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(TokenError, match=r"pip install 'covey-agent\[pkcs11\]'"):
        token.sign(address, bytes(32))


# --- TLS --------------------------------------------------------------------------------------------------------------


def shaken(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """The subject that the server has seen. Raises `ssl.SSLError` at either end."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (one, other) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return str(other.getpeercert())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_token_signs_handshakes_for_its_key_and_for_no_other(
    where: Address, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    authority = Authority(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.pem)

    def context(purpose: int, key: bytes, certificate: str) -> ssl.SSLContext:
        made = ssl.SSLContext(purpose)
        made.verify_mode, made.maximum_version = ssl.CERT_REQUIRED, version
        made.load_verify_locations(ca)
        (tmp_path / "pair.pem").write_bytes(key + certificate.encode())
        made.load_cert_chain(tmp_path / "pair.pem")
        return made

    key, request = make_key_and_request(None, DEVICE, str(where))
    handshake.hold(key)
    certificate = authority.sign(x509.load_pem_x509_csr(request.encode()), DEVICE)
    server = context(ssl.PROTOCOL_TLS_SERVER, *authority.issue("localhost"))
    server.set_ecdh_curve("prime256v1")  # so that keys are agreed on by EC, too
    held = context(ssl.PROTOCOL_TLS_CLIENT, key, certificate)
    assert DEVICE in shaken(held, server)
    assert "in a file" in shaken(context(ssl.PROTOCOL_TLS_CLIENT, *authority.issue("in a file")), server)
    # The stand-in without the token is worth nothing.
    token.sweep(address_of(key), ())
    with pytest.raises(ssl.SSLError):
        shaken(held, server)
    del handshake._held[point_of(key)]
    with pytest.raises(ssl.SSLError, match="BAD_SIGNATURE|bad signature"):
        shaken(held, server)
