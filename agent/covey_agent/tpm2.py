"""Keys in a TPM 2.0, by OpenSSL's provider for it (Debian: tpm2-openssl) and the `openssl` program.

What lies on disk is the key as the TPM has wrapped it (`TSS2 PRIVATE KEY`): of no use without that very TPM. Python's `ssl` reads it like any other
once the provider is loaded into the process; the handshake is TLS 1.3 then, and its signature is made in the TPM. The environment variable
`TPM2OPENSSL_TCTI` says where the TPM is; the kernel's `/dev/tpmrm0` by itself. It takes a resource manager, which that is: a bare TPM has
three places for objects, and a handshake needs more.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

from covey_agent.errors import AgentError

_MARK = b"-----BEGIN TSS2 PRIVATE KEY-----"
# Keys are used in the TPM; digests and ciphers are not its business, and would take its places.
_PROPERTIES = b"?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes"
_WITH = ("-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2,tpm2.digest!=yes")
_TIMEOUT_S = 60.0


class TpmError(AgentError):
    """The TPM cannot be used."""


def wraps(key_pem: bytes) -> bool:
    """Whether this is a TPM's key."""
    return _MARK in key_pem


def make() -> bytes:
    """A P-256 key that the TPM has made, wrapped. Raises `TpmError`, as do all of these."""
    return _openssl("genpkey", "-provider", "tpm2", "-algorithm", "EC", "-pkeyopt", "group:P-256")


def public(key_pem: bytes) -> bytes:
    """The public key (SubjectPublicKeyInfo, DER)."""
    with _file(key_pem) as key:
        return _openssl("pkey", *_WITH, "-in", key, "-pubout", "-outform", "DER")


def sign(key_pem: bytes, data: bytes) -> bytes:
    """ECDSA with SHA-256, in DER."""
    with _file(key_pem) as key, _file(data) as what:
        return _openssl("dgst", "-sha256", *_WITH, "-sign", key, what)


@functools.cache
def prepare() -> None:
    """Let this process's OpenSSL use keys of the TPM, in TLS contexts that are made from now on."""
    try:
        library = ctypes.CDLL("libcrypto.so.3")
    except OSError as error:
        raise TpmError(f"a key in a TPM needs OpenSSL 3: {error}") from error
    library.OSSL_PROVIDER_load.restype = ctypes.c_void_p
    library.OSSL_PROVIDER_load.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    library.EVP_set_default_properties.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    for provider in (b"default", b"tpm2"):
        if not library.OSSL_PROVIDER_load(None, provider):
            raise TpmError(f"OpenSSL's provider {provider.decode()} does not load: is tpm2-openssl there, and the TPM?")
    if library.EVP_set_default_properties(None, _PROPERTIES) != 1:
        raise TpmError("OpenSSL does not take the TPM's properties")


def _file(content: bytes) -> _Named:
    return _Named(content)


class _Named:
    """A file with this content, for as long as it is needed: for this user alone."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="covey-")
        path = Path(self._folder.name) / "file"
        path.write_bytes(self._content)
        return str(path)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _openssl(*words: str) -> bytes:
    try:
        done = subprocess.run(["openssl", *words], capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TpmError(f"openssl {words[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise TpmError(f"the TPM cannot be used: openssl {words[0]}: {lines[0][:200]}")
    return done.stdout
