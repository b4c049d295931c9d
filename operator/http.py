"""Health, readiness and metrics over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tidegate.operator.metrics import REGISTRY

Check = Callable[[], Sequence[str]]
"""Returns what is wrong; nothing when all is well."""


async def serve(address: str, health: Check, ready: Check) -> web.AppRunner:
    """Listen on `address` (`host:port`) until the returned runner is cleaned up. Raises OSError when it is taken."""

    def answer(check: Check) -> Callable[[web.Request], object]:
        async def respond(_: web.Request) -> web.Response:
            wrong = check()
            return web.Response(status=503 if wrong else 200, text="\n".join(wrong) if wrong else "ok")

        return respond

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", answer(health))  # type: ignore[arg-type]
    app.router.add_get("/readyz", answer(ready))  # type: ignore[arg-type]
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host.strip("[]") or "0.0.0.0", int(port)).start()
    return runner
