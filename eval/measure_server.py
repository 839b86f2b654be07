"""A short, bounded load on a user's own server, as its clients see it: what calibration reads.

Prompts are token ids drawn at random, so that their lengths are exact and no cache helps; answers
run to the wanted length (``ignore_eos``, which vLLM and SGLang know).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np

from lengthwise.errors import InputError
from lengthwise.eval.measured import Measured
from lengthwise.workload import Workload

TOKENS = (1000, 30_000)  # ids that every vocabulary has, beyond those of bytes and marks
LATE_S = 300.0  # after the last request: what has no answer then is broken off


async def measure_server(
    url: str,
    model: str | None,
    workload: Workload,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Sends each request of ``workload`` at its arrival to ``url``, an OpenAI API (``/v1``).

    Times are the client's own; without ``model`` it is the first that the server lists. Raises
    ``InputError`` where nobody answers, where the server refuses a request, and where it does not
    generate the tokens that were asked for.
    """
    rng = np.random.default_rng(seed)
    rows = list(
        zip(*(workload[c].tolist() for c in ("arrival_s", "prompt_tokens", "output_tokens")),
            strict=True)
    )  # fmt: skip
    prompts = [rng.integers(*TOKENS, size).tolist() for _, size, _ in rows]
    timeout = aiohttp.ClientTimeout(total=float(rows[-1][0]) + LATE_S)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
    ) as session:
        model = model or await _served(session, url)
        began = time.monotonic() + 0.2
        done = 0

        async def one(place: int) -> tuple[float, float, float]:
            nonlocal done
            at_s, _, output = rows[place]
            await asyncio.sleep(max(began + at_s - time.monotonic(), 0.0))
            body = {
                "model": model, "prompt": prompts[place], "max_tokens": output,
                "ignore_eos": True, "temperature": 1.0, "seed": place, "stream": True,
                "stream_options": {"include_usage": True},
            }  # fmt: skip
            found = await _answer(session, f"{url.rstrip('/')}/v1/completions", body)
            done += 1
            progress(done, len(rows))
            return found

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(place)) for place in range(len(rows))]
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
    times = np.array([task.result() for task in tasks])
    sent = Workload(
        {
            "arrival_s": times[:, 0] - times[0, 0],
            "prompt_tokens": workload["prompt_tokens"],
            "output_tokens": workload["output_tokens"],
        },
        name=url,
    )
    return Measured(url, sent, times[:, 1], times[:, 2])


async def _served(session: aiohttp.ClientSession, url: str) -> str:
    """The name of the first model that a server lists."""
    where = f"{url.rstrip('/')}/v1/models"
    try:
        async with session.get(where) as answer:
            return str((await answer.json())["data"][0]["id"])
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{where} lists no model: {error or type(error).__name__}") from None


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    one: BaseException = errors
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    return one


async def _answer(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[float, float, float]:
    """When it was sent, and seconds to its first and last token."""
    sent = time.monotonic()
    first = last = None
    usage: dict[str, Any] = {}
    try:
        async with session.post(url, json=body) as answer:
            if answer.status != 200:
                text = (await answer.text())[:200].replace("\n", " ")
                raise InputError(f"{url} answered {answer.status}: {text}")
            async for line in answer.content:
                if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                    continue
                said = json.loads(line[5:])
                if said.get("choices"):
                    last = time.monotonic()
                    first = last if first is None else first
                usage = said.get("usage") or usage
    except InputError:
        raise
    except TimeoutError:
        raise InputError(f"{url}: no answer {LATE_S:.0f} s after the last request") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise InputError(f"{url}: {error or type(error).__name__}") from None
    generated = usage.get("completion_tokens")
    if first is None or last is None or generated != body["max_tokens"]:
        raise InputError(
            f"{url} generated {generated} tokens where {body['max_tokens']} were asked for: it "
            "must know ignore_eos, and its context must hold 4,096 tokens"
        )
    return sent, first - sent, last - sent
