"""Uvicorn's protocol, so that a request knows the client certificate that its connection came with.

`scope[SCOPE_KEY]` holds it in DER. TLS has verified it against the fleet's authority; whether it was revoked is for the reader to see.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.protocols.http.auto import AutoHTTPProtocol

SCOPE_KEY = "covey.peer_certificate"


class PeerCertificateProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # one of two classes, chosen by what is installed
    """One connection."""

    app: ASGI3Application

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        certificate = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLObject) else None
        if certificate is None:
            return
        plain = self.app

        async def known(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            cast("dict[str, object]", scope)[SCOPE_KEY] = certificate
            await plain(scope, receive, send)

        self.app = known
