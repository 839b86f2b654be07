"""LiteLLM's router with the plugin's strategy and fake models: run by ``router_environment``.

Reads a task from standard input, prints one JSON line. Each strategy gets three fresh servers, one
four times slower; in those that are named in "dies" one server ends in the middle.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what LiteLLM prints must not mix with the answers

# ruff: noqa: E402
import litellm
from router_workload import SLOWNESS, TOKEN_S, workload

from lengthwise.policies.plugins.litellm import RoutingStrategy

MODEL = str(Path(__file__).with_name("fake_model.py"))


class Servers:
    """Three fake models, and LiteLLM's router in front of them."""

    def __init__(self, strategy: dict[str, Any]) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, MODEL, str(TOKEN_S * slowness)], stdout=subprocess.PIPE, text=True
            )
            for slowness in SLOWNESS
        ]
        self.ports = [int(p.stdout.readline()) for p in self.processes if p.stdout is not None]
        self.router = litellm.Router(
            model_list=[
                {
                    "model_name": "m", "model_info": {"id": f"replica{i}"},
                    "litellm_params": {"model": "openai/m", "api_key": "none",
                                       "api_base": f"http://127.0.0.1:{port}/v1"},
                }
                for i, port in enumerate(self.ports)
            ],
            num_retries=4, retry_after=0, cooldown_time=60, allowed_fails=0,
        )  # fmt: skip
        self.strategy = RoutingStrategy(self.router, **strategy)
        self.router.set_custom_routing_strategy(self.strategy)

    def left(self) -> int:
        """Requests that the strategy still counts on some replica."""
        return sum(self.strategy.ranking.unfinished(f"replica{i}") for i in range(3))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


async def ask(servers: Servers, prompt: str, tokens: int) -> str:
    """Which replica answered."""
    answer = await servers.router.acompletion(
        model="m", messages=[{"role": "user", "content": prompt}], max_tokens=tokens
    )
    assert answer.choices[0].message.content == prompt
    return str(answer._hidden_params["model_id"])


async def settled(servers: Servers) -> int:
    """``left`` once LiteLLM, which tells what ended in the background, has had its say."""
    for k in range(100):
        if k % 20 == 10:
            gc.collect()  # its streams of responses are cycles
        if not servers.left():
            break
        await asyncio.sleep(0.05)
    return servers.left()


async def drive(
    servers: Servers, jobs: list[tuple[float, int]], predicts: bool, dies: bool
) -> dict[str, Any]:
    """Sends each job at its time; prompts say their length where ``predicts``."""
    await asyncio.gather(*(ask(servers, "warm 1", 1) for _ in range(6)))
    start = time.monotonic()
    latency_s: list[float] = []
    served: list[str] = []
    failed: list[str] = []

    async def one(index: int, at_s: float, tokens: int) -> None:
        await asyncio.sleep(max(0.0, start + at_s - time.monotonic()))
        if dies and index == len(jobs) // 2:
            servers.processes[1].kill()
        try:
            served.append(await ask(servers, f"{index} {tokens}" if predicts else "go", tokens))
        except Exception as error:
            failed.append(repr(error))
        else:
            latency_s.append(time.monotonic() - start - at_s)

    await asyncio.gather(*(one(i, *job) for i, job in enumerate(jobs)))
    return {
        "answered": len(served), "failed": failed, "mean_s": statistics.mean(latency_s),
        "by_replica": {name: served.count(name) for name in sorted(set(served))},
        "left": await settled(servers),
    }  # fmt: skip


async def hang_up(servers: Servers) -> int:
    """What the strategy still counts after clients that hung up."""
    tasks = [asyncio.create_task(ask(servers, "go", 200)) for _ in range(12)]
    await asyncio.sleep(0.5)
    assert servers.left() > 6
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return await settled(servers)


async def leave_streams(servers: Servers, kind: str) -> dict[str, Any]:
    """What the strategy counts while a stream is read, and after readers that left theirs."""

    async def opened(tokens: int = 200) -> Any:
        router: Any = servers.router
        if kind == "text":
            return await router.atext_completion(
                model="m", prompt="go", max_tokens=tokens, stream=True
            )
        if kind == "responses":
            return await router.aresponses(
                model="m", input="go", max_output_tokens=tokens, stream=True
            )
        return await router.acompletion(
            model="m", messages=[{"role": "user", "content": "go"}], max_tokens=tokens, stream=True
        )

    async def some(stream: Any) -> None:
        for _ in range(3):
            await stream.__anext__()

    async def whole() -> None:
        async for _ in await opened(5):
            pass

    async def broken_off() -> None:
        await some(await opened())

    async def closed() -> None:
        stream = await opened()
        await some(stream)
        if hasattr(stream, "aclose"):
            await stream.aclose()
        else:
            del stream
            return
        kept.append(stream)

    async def handed_over() -> None:
        await asyncio.create_task(some(await asyncio.create_task(opened())))

    async def never_begun() -> None:
        await opened()

    kept: list[Any] = []
    found: dict[str, Any] = {}
    reading = await opened()
    await some(reading)
    found["while read"] = servers.left()
    del reading
    found["dropped"] = await settled(servers)
    for leave in (whole, broken_off, closed, handed_over, never_begun):
        await asyncio.create_task(leave())
        found[leave.__name__] = await settled(servers)
    return found


async def odd_calls(servers: Servers) -> list[str]:
    """Who answers calls of shapes that no model takes; the router must not mind."""
    odd: list[Any] = [[{"role": "user"}], [{"content": [{"text": 5}]}], [{"content": {"a": 1}}]]
    found = []
    for messages in odd:
        deployment = await servers.strategy.async_get_available_deployment(
            "m", messages=messages, request_kwargs={"max_tokens": "many", "vllm_xargs": [1]}
        )
        found.append(deployment["model_info"]["id"])
    servers.strategy.ranking.keep([])  # nobody ends them
    return found


async def all_dead(servers: Servers) -> str:
    """What a client hears when no server is left."""
    servers.close()
    for _ in range(2):  # the second finds all of them on cooldown
        try:
            await ask(servers, "go", 1)
        except Exception as error:
            heard = f"{type(error).__name__}: {error}"
    return heard


def synchronous(servers: Servers) -> str:
    """What a synchronous caller hears."""
    try:
        servers.router.completion(model="m", messages=[{"role": "user", "content": "go"}])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def said_length(prompt: str) -> float:
    """A predictor that is right: the prompts end in the length of their answers."""
    return float(prompt.split()[-1])


async def run(task: dict[str, Any]) -> dict[str, Any]:
    jobs = workload(task["seed"], task["count"], task["rate"])
    found: dict[str, Any] = {}
    for name, strategy in task["strategies"].items():
        told = {"predict": said_length} if strategy.pop("told") else {}
        servers = Servers({**strategy, **told})
        try:
            found[name] = await drive(servers, jobs, bool(told), name in task["dies"])
            found[name]["counts"] = {
                f"{key}:{label}": n for (key, label), n in servers.strategy.counters.counts.items()
            }
        finally:
            servers.close()
    servers = Servers({"policy": "jsq"})
    try:
        found["left after hanging up"] = await hang_up(servers)
        found["streams"] = {
            kind: await leave_streams(servers, kind) for kind in ("chat", "text", "responses")
        }
        found["odd"] = await odd_calls(servers)
        found["synchronous"] = await asyncio.to_thread(synchronous, servers)
        found["all dead"] = await all_dead(servers)
    finally:
        servers.close()
    return found


def main() -> None:
    litellm.suppress_debug_info = True
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
