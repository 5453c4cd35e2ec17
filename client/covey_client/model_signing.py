"""OpenSSF Model Signing (https://github.com/ossf/model-signing-spec) with a key in a file: a publisher signs what leaves the desk, and whoever
pushes it checks that it is what was signed.

Its library is the extra `model-signing`: it brings some 50 MB, which pipelines without signatures need not install.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from covey_client.errors import ClientError


class SignatureRefused(ClientError):
    """The signature is not this key's signature of this model."""


def sign(model: Path, key: Path, out: Path) -> None:
    """Raises `ClientError`."""
    signing, _ = _library()
    try:
        signing.Config().use_elliptic_key_signer(private_key=key).sign(model, out)
    except (ValueError, TypeError, OSError) as error:
        raise ClientError(f"{model} cannot be signed with {key}: {_line(error)}") from error


def verify(model: Path, signature: Path, key: Path) -> None:
    """Raises `SignatureRefused` unless the key signed just this model, `ClientError` where that cannot be told."""
    _, verifying = _library()
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(model, signature)
    except OSError as error:
        raise ClientError(f"{signature}, {model} or {key} cannot be read: {_line(error)}") from error
    except Exception as error:  # the library's errors, its parsers' among them, have no common base
        raise SignatureRefused(f"{signature} is not a signature of {model} by {key}: {_line(error)}") from error


def _library() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise ClientError("signatures of models need: pip install 'covey-client[model-signing]'") from error
    return signing, verifying


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
