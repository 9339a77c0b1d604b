"""A local HTTPS server for JSON documents, with a certificate made on the spot. Needs aiohttp and trustme."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trustme
from aiohttp import web


@contextlib.asynccontextmanager
async def serve_json(documents: Mapping[str, Any]) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    """Serve {path: document} on a free port of this machine while the context lasts.

    Gives the server's URL and an ssl.SSLContext for clients that trusts its certificate.
    """
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def answer(request: web.Request) -> web.Response:
        if request.path not in documents:
            raise web.HTTPNotFound
        return web.json_response(documents[request.path])

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "localhost", 0, ssl_context=serving).start()
        port = runner.addresses[0][1]
        yield f"https://localhost:{port}", trusting
    finally:
        await runner.cleanup()
