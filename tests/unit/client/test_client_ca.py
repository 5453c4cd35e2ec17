"""The fleet's CA on the operator's side: which one is used, how it is kept."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from covey_client.api import Client, ClientError
from covey_client.settings import Account, find_account, read_stored, store

URL = "https://fleet.example:8443"


def _ca(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def test_a_login_keeps_a_copy_of_its_ca_and_of_no_other(tmp_path: Path) -> None:
    environment = {"COVEY_CONFIG": str(tmp_path / "config")}
    for name in ("first", "second"):
        given = _ca(tmp_path / f"{name}.pem")
        pem = given.read_bytes()
        store(environment, Account(URL, "secret", given))
        given.unlink()
        found = find_account(environment)
        assert (found.url, found.token) == (URL, "secret")
        assert found.ca is not None
        assert found.ca.read_bytes() == pem
        assert list((tmp_path / "config").glob("*.pem")) == [found.ca]
    # A login again, with the very file that is kept.
    store(environment, found)
    assert find_account(environment) == found
    store(environment, Account("http://127.0.0.1:8080", "secret"))
    assert find_account(environment).ca is None
    assert not list((tmp_path / "config").glob("*.pem"))


def test_what_is_no_ca_replaces_no_login(tmp_path: Path) -> None:
    environment = {"COVEY_CONFIG": str(tmp_path / "config")}
    store(environment, Account(URL, "secret", _ca(tmp_path / "good.pem")))
    before = read_stored(environment)
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
    for bad in ("bad.pem", "none.pem"):
        with pytest.raises(ClientError, match=bad):
            store(environment, Account(URL, "other", tmp_path / bad))
    assert read_stored(environment) == before


def test_which_ca_is_used(tmp_path: Path) -> None:
    environment = {"COVEY_CONFIG": str(tmp_path / "config")}
    kept, given = _ca(tmp_path / "kept.pem"), _ca(tmp_path / "given.pem")
    store(environment, Account(URL, "secret", kept))
    stored = find_account(environment).ca
    assert stored is not None
    assert find_account(environment, server=URL + "/").ca == stored
    assert find_account(environment, server="https://elsewhere.example").ca is None
    assert find_account({**environment, "COVEY_CA": str(given)}).ca == given
    assert find_account({**environment, "COVEY_CA": str(kept)}, ca=given).ca == given
    (tmp_path / "server.json").write_text(f'{{"url": "{URL}", "pid": 1, "ca": "{given}"}}')
    (tmp_path / "admin-token").write_text("root\n")
    assert find_account({**environment, "COVEY_CA": str(kept)}, data=tmp_path) == Account(URL, "root", given)


def test_over_plain_http_no_ca_is_read(tmp_path: Path) -> None:
    Client("http://127.0.0.1:1", ca=tmp_path / "none.pem").close()
    with pytest.raises(ClientError, match=r"none\.pem: No such file"):
        Client(URL, ca=tmp_path / "none.pem")
