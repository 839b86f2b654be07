"""Ray Serve with the plugin's router and fake model replicas: run by ``router_environment``.

Reads ``{"routers": [...], ...}`` from standard input, prints one JSON line. Each replica serves one
request at a time, in ``TOKEN_S`` an output token times its own slowness: the slots in a folder say
which replica is the slow one. A client whose replica died asks again, as an OpenAI client does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what Ray prints must not mix with the answers

# ruff: noqa: E402
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from router_workload import SLOWNESS, TOKEN_S, workload

from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.ray_serve import PolicyRouting

ROUTER = "lengthwise.policies.plugins.ray_serve:PolicyRouter"


class Model:
    """A replica of a model: ``{"prompt": ..., "max_tokens": n}`` takes n tokens' time."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        for slot in range(100):  # a replica that is started again finds its slot taken
            with suppress(FileExistsError):
                (self._folder / f"slot{slot}").touch(exist_ok=False)
                break
        self.slot = slot
        self._slowness = SLOWNESS[slot] if slot < len(SLOWNESS) else 1
        self._engine = asyncio.Lock()

    async def __call__(self, request: dict[str, Any]) -> dict[str, int]:
        if self.slot == 1 and (self._folder / "kill").exists():
            os._exit(1)
        async with self._engine:
            await asyncio.sleep(request["max_tokens"] * TOKEN_S * self._slowness)
        usage = {"completion_tokens": request["max_tokens"]}
        return {"index": request["index"], "slot": self.slot, "usage": usage}

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The same answer in parts, of which the last tells its usage."""
        for _ in range(3):
            yield {"text": "word", "usage": None}
        yield await self(request)


async def drive(handle: Any, jobs: list[tuple[float, int]], kill: Path | None) -> dict[str, Any]:
    """Sends each job at its time; who served it, when it was done, and how often it was retried."""
    start = time.monotonic()
    latency_s: dict[int, float] = {}
    served: dict[int, int] = {}
    retried: list[int] = []

    async def one(index: int, at_s: float, tokens: int) -> None:
        await asyncio.sleep(max(0.0, start + at_s - time.monotonic()))
        if kill is not None and index == len(jobs) // 2:
            kill.touch()
        request = {"prompt": f"request {index}", "max_tokens": tokens, "index": index,
                   "vllm_xargs": {"predicted_tokens": tokens}}  # fmt: skip
        for _ in range(10):
            try:
                answer = await handle.remote(request)
            except ray.exceptions.RayError:
                retried.append(index)
                continue
            assert answer["index"] == index and index not in served
            served[index] = answer["slot"]
            latency_s[index] = time.monotonic() - start - at_s
            return

    await asyncio.gather(*(one(i, *job) for i, job in enumerate(jobs)))
    return {
        "answered": len(served),
        "retried": retried,
        "mean_s": statistics.mean(latency_s.values()),
        "by_slot": {slot: list(served.values()).count(slot) for slot in set(served.values())},
    }


def deploy(routers: dict[str, dict[str, Any] | None], folder: Path) -> dict[str, Any]:
    """An application of three replicas for each router, all at once: their handles.

    In the one called "full" each replica takes one request at a time, and others wait for a seat.
    """
    targets = []
    for name, router in routers.items():
        config = RequestRouterConfig()  # Ray Serve's own router
        if router is not None:
            config = RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs=router)
        made = serve.deployment(
            num_replicas=3, max_ongoing_requests=1 if name == "full" else 1000,
            request_router_config=config,
            ray_actor_options={"num_cpus": 0},
        )(Model)  # fmt: skip
        (folder / name).mkdir()
        target = made.bind(str(folder / name))
        targets.append(serve.RunTarget(target, name=name, route_prefix=None))
    return dict(zip(routers, serve.run_many(targets), strict=True))


def left() -> int:
    """Requests that the plugin's routers still count on some replica."""
    routers = [known for known in gc.get_objects() if isinstance(known, PolicyRouting)]
    return sum(
        known._lengthwise.unfinished(replica)
        for known in routers
        for replica in known._lengthwise._replicas
    )


async def settled() -> int:
    """``left`` once Ray's callbacks, which run after the answers, have had their say."""
    for _ in range(200):
        if not left():
            break
        await asyncio.sleep(0.05)
    return left()


async def warm(handle: Any) -> list[int]:
    """Makes connections, which are not what is measured; who answered."""
    asked = [handle.remote({"max_tokens": 1, "index": -1}) for _ in range(6)]
    return [answer["slot"] for answer in await asyncio.gather(*asked)]


async def odd_calls(handle: Any) -> int:
    """How many of these are answered, none of them a call that OpenAI's API knows."""
    odd: list[dict[str, Any]] = [
        {"messages": 5}, {"messages": {"role": 1}}, {"messages": [5, None, {"content": {"a": 1}}]},
        {"prompt": 7}, {"input": [[1]]}, {"vllm_xargs": [1]},
        {"vllm_xargs": {"predicted_tokens": 10**400}}, {"max_completion_tokens": "many"},
    ]  # fmt: skip
    answers = [handle.remote({"max_tokens": 1, "index": -1, **one}) for one in odd]
    return len(await asyncio.wait_for(asyncio.gather(*answers), 30))


def judged() -> list[float]:
    """How far off the lengths that clients told were, by those routers that heard of answers."""
    routers = [known for known in gc.get_objects() if isinstance(known, PolicyRouting)]
    told = ("recent_log2", "client")
    gauges = [known._lengthwise.counters.gauges for known in routers]
    return sorted(found[told] for found in gauges if told in found)


async def streamed(handle: Any) -> list[float]:
    """``judged`` after 50 answers in streams, each twice as long as its client told."""

    async def one(tokens: int) -> None:
        said = {"max_tokens": tokens, "index": -1, "vllm_xargs": {"predicted_tokens": tokens / 2}}
        async for _ in handle.options(stream=True, method_name="stream").remote(said):
            pass

    await asyncio.gather(*(one(2 + 2 * (k % 2)) for k in range(50)))
    return judged()


async def hang_up(handle: Any) -> list[int]:
    """What the routers count while replicas are full, and after everybody there has hung up."""
    asked = [handle.remote({"max_tokens": 500, "index": -1}) for _ in range(12)]
    counted = 0
    for _ in range(100):  # on a busy machine routing them takes a while
        await asyncio.sleep(0.1)
        counted = max(counted, left())
        if counted > 3:
            break
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    return [counted, await settled()]


class Front:
    """An ingress, which calls the model behind it by its handle."""

    def __init__(self, model: Any) -> None:
        self._model = model


def ingress() -> dict[str, Any]:
    """What becomes of our router at an ingress deployment, and of one behind it."""
    from ray.serve._private import build_app
    from ray.serve._private.common import RequestMetadata, RequestProtocol, StreamingHTTPRequest

    config = RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs={})
    model = serve.deployment(request_router_config=config)(Model).bind("folder")
    found: dict[str, Any] = {}
    build_app.RAY_SERVE_ENABLE_HA_PROXY = True
    for name, target in (("itself", model), ("behind", serve.deployment(Front).bind(model))):
        try:
            build_app.build_app(target, name=name)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = "built"
    build_app.RAY_SERVE_ENABLE_HA_PROXY = False
    scope = {"type": "http", "headers": [(b"content-length", b"999")]}
    # as Ray Serve's proxy makes it
    sent = pickle.dumps(StreamingHTTPRequest(scope, proxy_actor_name="proxy"))
    told = RequestMetadata("1", "1", _request_protocol=RequestProtocol.HTTP)
    found["by http"] = [told.is_http_request, call_of(sent).text]
    return found


def main() -> None:
    task = json.load(sys.stdin)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             object_store_memory=100 * 2**20)  # fmt: skip
    serve.start(proxy_location="Disabled")  # handles are called, nobody comes by HTTP
    jobs = workload(task["seed"], task["count"], task["rate"])
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as root:
            handles = deploy(task["routers"], Path(root))
            full = handles.pop("full")
            for name, handle in handles.items():
                warmed = asyncio.run(warm(handle))
                kill = Path(root) / name / "kill" if name in task["dies"] else None
                found[name] = asyncio.run(drive(handle, jobs, kill))
                found[name]["warmed"] = [warmed.count(slot) for slot in range(3)]
            found["left"] = asyncio.run(settled())
            found["judged"] = [judged(), asyncio.run(streamed(handles["round-robin"]))]
            found["ingress"] = ingress()
            found["odd"] = asyncio.run(odd_calls(handles["least-tokens"]))
            found["hung up"] = asyncio.run(hang_up(full))
    finally:
        serve.shutdown()
        ray.shutdown()
    print(json.dumps(found), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
