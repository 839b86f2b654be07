"""Serving at an address, and ending; whoever imports this has aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from lengthwise.errors import InputError


async def listening(app: web.Application, host: str, port: int, **options: Any) -> web.AppRunner:
    """Serves ``app`` until ``cleanup`` of the runner that is returned; port 0 takes a free one.

    ``options`` are aiohttp's of a runner; with ``handler_cancellation=True`` a handler is cancelled
    when its client hangs up. Raises ``InputError`` for an address that can't be had.
    """
    runner = web.AppRunner(app, access_log=None, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise InputError(f"can't listen on host {host!r}, port {port}: {error.strerror}") from None
    return runner


async def until_drained(
    drain: Callable[[float], Awaitable[int]],
    ended: asyncio.Event,
    most_s: float,
    say: Callable[[str], None],
) -> None:
    """Waits for ``ended``, and then for what is under way; says what was left."""
    await ended.wait()
    if left := await drain(most_s):
        say(f"{left} requests were not answered")
