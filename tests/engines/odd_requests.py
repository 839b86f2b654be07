"""Odd requests, and fakes of every engine and router that each plugin must serve them in.

    python -m tests.engines.odd_requests --requests 100000 --jobs 7

One strategy for all: what a client can send, and more. ``PLUGINS`` are functions of a list of such
requests that raise whatever a hook raised, and ``AssertionError`` for a request that was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import functools
import itertools
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lengthwise.policies.load import load_policy
from lengthwise.policies.plugins.litellm import RoutingStrategy
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.ray_serve import PolicyRouting
from lengthwise.policies.plugins.record import Recorder
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.sglang import Priorities
from lengthwise.policies.plugins.transformers import PolicyOrder
from lengthwise.policies.plugins.vllm.scheduling import PolicyScheduling
from lengthwise.policies.plugins.vllm.shadow import ShadowScheduling
from lengthwise.policy import Guard
from tests.engines.fake_scheduler import FakeScheduler, Request, config

Odd = dict[str, Any]


class Rude:
    """An object of somebody's that can't even be looked at."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # what looks at it for hypothesis
        raise RuntimeError(name)


NUMBERS = st.one_of(
    st.integers(-3, 300), st.floats(), st.floats(0, 1e4),
    st.sampled_from([2**31, 2**53 + 1, 2**63, -(2**63), 10**400, True, 1e-320]),
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["", "12", "9" * 400, "nan", "\ud800", "user", "a" * 999, "Infinity"]),
    st.text(max_size=4),
)
SIMPLE = st.one_of(NUMBERS, TEXTS, st.none(), st.binary(max_size=3))
# by name, for hypothesis spells out what it draws from, and Python not the longest integers
NAMED: dict[str, Any] = {
    "longest": 10**5000, "array": np.zeros(2), "object": object(), "rude": Rude(),
    "range": range(3), "set": {1}, "float32": np.float32(7), "function": print,
}  # fmt: skip


def _named(name: str) -> Any:
    return NAMED[name]


OBJECTS = st.sampled_from(list(NAMED)).map(_named)
FIELDS = (
    "messages", "prompt", "input", "content", "role", "text", "vllm_xargs", "predicted_tokens",
    "deadline_s", "session_id", "tenant", "task", "max_tokens", "max_completion_tokens", "model",
    "temperature", "top_p", "tools", "response_format", "type", "headers", "metadata", "user",
    "conversation_id", "cache_salt", "function", "parameters",
)  # fmt: skip
VALUES = st.recursive(
    SIMPLE | OBJECTS,
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | SIMPLE, some, max_size=3)
    ),
    max_leaves=5,
)
SENT = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            name: VALUES
            for name in ("predicted_tokens", "deadline_s", "session_id", "tenant", "task")
        },
    ),
    VALUES,
)
# of the right types where the engine itself sees to that, and the client may choose the value
REQUESTS: st.SearchStrategy[list[Odd]] = st.lists(
    st.fixed_dictionaries(
        {
            "sent": SENT, "call": st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)
            | VALUES,
            "priority": NUMBERS | st.none(), "limit": NUMBERS | st.none(),
            "temperature": VALUES, "top_p": VALUES,
            "prompt": st.none() | st.lists(st.sampled_from([0, 7, -1, 2**31, 2**63]), max_size=4),
            "arrival": st.floats(), "output": st.integers(1, 4), "aborts": st.booleans(),
        }
    ),
    min_size=8, max_size=12,
)  # fmt: skip
POLICIES = (
    "srtf+preempt:mode=recompute,price=0", "hrrn", "priority", "mlfq:quantum=2", "sjf",
    "weighted-sjf",
)  # fmt: skip
STEPS = 400  # for a dozen requests of four tokens


def _serve(scheduler: Any, requests: list[Odd]) -> None:
    """Steps until everything has ended; some requests' clients hang up on the way."""
    made = [Request(f"{i}", **given) for i, given in enumerate(requests)]
    for number in range(STEPS):
        if number < len(made):
            scheduler.add_request(made[number])
        elif not scheduler.requests:
            break
        output = scheduler.schedule()
        scheduler.update_from_output(output, None)
        if number < len(made) and requests[number]["aborts"]:
            scheduler.finish_requests(f"{number}")
    missing = {f"{i}" for i in range(len(made))} ^ set(scheduler.finished)
    assert not missing and len(scheduler.finished) == len(made), f"lost: {missing}"
    counts = scheduler.lengthwise.counters.counts
    assert not any(n for (name, _), n in counts.items() if name == "failed_steps"), counts
    scheduler.shutdown()


_which = itertools.count()
_loaded = functools.cache(load_policy)


def vllm(requests: list[Odd]) -> None:
    """The vLLM plugin under a policy, each in turn."""
    said = Settings(policy=POLICIES[next(_which) % len(POLICIES)], guard=1.5, guard_floor_s=0.0)
    made = type("Policy", (PolicyScheduling, FakeScheduler), {})
    _serve(made(config(), lengthwise=(said, _loaded(said.policy), Counters())), requests)


def shadow(requests: list[Odd]) -> None:
    """vLLM's own order, watched."""
    made = type("Shadowed", (ShadowScheduling, FakeScheduler), {})
    _serve(made(config(), lengthwise=(Settings(policy="fcfs"), Counters())), requests)


def recorder(requests: list[Odd]) -> None:
    """What finished is written, or counted as dropped."""
    counters = Counters()
    with tempfile.TemporaryDirectory() as folder:
        said = Settings(policy="fcfs", record=folder, record_prompts=True)
        made = Recorder(said, config().model_config, counters)
        for index, one in enumerate(requests):
            request = Request(f"{index}", **one)
            request.num_output_tokens = one["output"]
            made.finished(request)
        made.close()
    done = sum(n for (name, _), n in counters.counts.items() if name == "recorded")
    assert done == len(requests), f"{done} of {len(requests)} are accounted for"


def sglang(requests: list[Odd]) -> None:
    """The order of SGLang's queue, and its preemption, under what ``custom_params`` may be."""
    priorities = Priorities(Settings(policy=("srtf", "sjf", "priority")[next(_which) % 3]))
    policy = SimpleNamespace(enable_priority_scheduling=True, priority_sign=1)
    priorities.check(None, policy)
    waiting = [
        SimpleNamespace(
            rid=i, origin_input_ids=one["prompt"] or [0], output_ids=[], priority=one["priority"],
            sampling_params=SimpleNamespace(
                custom_params=one["sent"], max_new_tokens=one["limit"]
            ),
        )
        for i, one in enumerate(requests)
    ]  # fmt: skip
    before = [r.priority for r in waiting]

    def own(policy: Any, queue: list[Any]) -> None:
        assert not any(math.isnan(r.priority) for r in queue)
        queue.sort(key=lambda r: r.priority)

    order = list(waiting)
    priorities.order(own, policy, order)
    assert sorted(r.rid for r in order) == list(range(len(waiting)))
    adder = SimpleNamespace(running_batch=SimpleNamespace(reqs=waiting[1:]))
    priorities.preempt(lambda adder, request: None, adder, waiting[0])
    assert all(r.priority is p for r, p in zip(waiting, before, strict=True))


class _FIFO:
    """transformers' ``FIFOScheduler``, as far as the plugin sees it."""

    def __init__(self) -> None:
        self.active_requests: dict[str, Any] = {}
        self.waiting_requests: dict[str, Any] = {}
        self.waiting_requests_order: collections.deque[str] = collections.deque()
        self.max_requests_per_batch, self.block_new_requests = 2, False

    def add_waiting_request(self, state: Any) -> None:
        self.waiting_requests[state.request_id] = state
        self.waiting_requests_order.append(state.request_id)

    def finish_request(self, request_id: str) -> None:
        del self.active_requests[request_id]

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        chosen = [*self.active_requests.values(), *self._get_waiting_candidates()]  # type: ignore[attr-defined]
        chosen = chosen[: self.max_requests_per_batch]
        for state in chosen:
            if self.waiting_requests.pop(state.request_id, None) is not None:
                self.waiting_requests_order.remove(state.request_id)
                self.active_requests[state.request_id] = state
        return [SimpleNamespace(state=state) for state in chosen] or None, None


def transformers(requests: list[Odd]) -> None:
    """Continuous batching with a predictor that says what a client could."""
    answers = iter([one["sent"] for one in requests])

    def predict(prompts: list[Any]) -> Any:
        said = next(answers)
        if isinstance(said, bytes):
            raise SystemExit(3)
        return [said.get("predicted_tokens")] if isinstance(said, dict) else said

    policy = _loaded(("srtf+preempt:mode=recompute", "sjf", "mlfq")[next(_which) % 3])
    given = {"policy": policy, "predict": staticmethod(predict), "default_tokens": 64.0,
             "rule": Guard(1.5, 0.0),
             "known": staticmethod(lambda name: requests[int(name)]["sent"])}  # fmt: skip
    made: Any = type("Policy", (PolicyOrder, _FIFO), given)()
    for i, one in enumerate(requests):
        prompt = one["prompt"] or [0]
        made.add_waiting_request(
            SimpleNamespace(
                request_id=f"{i}", initial_tokens=prompt, generated_tokens=[], position_offset=0,
                created_time=time.perf_counter(), max_new_tokens=one["limit"],
                remaining_prefill_tokens=prompt, output=one["output"],
            )
        )  # fmt: skip
    ended = []
    for _ in range(STEPS):
        for future in made.schedule_batch(64, 64)[0] or ():
            future.state.generated_tokens.append(0)
            future.state.remaining_prefill_tokens = []
            if len(future.state.generated_tokens) >= future.state.output:
                made.finish_request(future.state.request_id)
                ended.append(future.state.request_id)
        if len(ended) == len(requests):
            break
    assert sorted(ended, key=int) == [f"{i}" for i in range(len(requests))], "lost"


class RequestRouter:
    """Ray Serve's, as far as the plugin sees it."""

    def initialize_state(self, **rest: Any) -> None: ...

    async def _choose_replica_for_request(self, pending: Any, **rest: Any) -> Any:
        candidates = list(self.curr_replicas.values())  # type: ignore[attr-defined]
        return (await self.choose_replicas(candidates, pending))[0][0]  # type: ignore[attr-defined]

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None: ...


def ray_serve(requests: list[Odd]) -> None:
    """Ray Serve, whose replicas report what clients could say."""
    made: Any = type("Router", (PolicyRouting, RequestRouter), {})()
    made.initialize_state(
        policy=("least-tokens", "jsq", "round-robin")[next(_which) % 3],
        reports=("waiting_requests", "running_requests"),
    )
    told = iter(itertools.cycle([one["limit"] for one in requests]))
    made.curr_replicas = {
        f"r{i}": SimpleNamespace(replica_id=f"r{i}", routing_stats={"waiting_requests": next(told)})
        for i in range(3)
    }  # as Ray Serve has them: by id
    made.curr_replicas["r2"].routing_stats = None

    async def run() -> None:
        for i, one in enumerate(requests):
            pending = SimpleNamespace(
                args=(one["call"],), kwargs={"more": one["sent"]}, created_at=one["arrival"],
                future=asyncio.get_running_loop().create_future(),
                metadata=SimpleNamespace(internal_request_id=f"{i}"),
            )  # fmt: skip
            replica = await made._choose_replica_for_request(pending)
            assert replica is made.curr_replicas[replica.replica_id]
            router = made._lengthwise
            assert sum(router.unfinished(r) for r in router._replicas) == 1
            made.on_request_completed(replica.replica_id, f"{i}")
            assert not any(router.unfinished(r) for r in router._replicas)

    asyncio.run(run())


@contextmanager
def litellm_modules() -> Iterator[None]:
    """The modules that the strategy imports of LiteLLM."""
    names = ("litellm", "litellm.integrations", "litellm.integrations.custom_logger")
    before = {name: sys.modules.get(name) for name in names}
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules[names[0]].logging_callback_manager = SimpleNamespace(
        add_litellm_callback=lambda callback: None
    )
    modules[names[2]].CustomLogger = object
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def litellm(requests: list[Odd]) -> None:
    """LiteLLM's router, asked with what a client may call it with."""
    deployments = [{"model_info": {"id": f"r{i}"}} for i in range(3)]

    async def healthy(**rest: Any) -> Any:
        return deployments

    async def iterate(**rest: Any) -> Any: ...

    async def run() -> None:
        with litellm_modules():
            router = SimpleNamespace(
                async_get_healthy_deployments=healthy, _acompletion_streaming_iterator=iterate
            )
            strategy = RoutingStrategy(router, "least-tokens")
        for one in requests:
            call = one["call"] if isinstance(one["call"], dict) else {}
            call = {name: call[name] for name in call if isinstance(name, str)}
            messages = call.pop("messages", None)
            found = await strategy.async_get_available_deployment(
                "m", messages=messages, input=one["sent"], request_kwargs=call
            )
            assert found in deployments
            assert sum(strategy.ranking.unfinished(f"r{i}") for i in range(3)) == 1
            strategy.ended({"litellm_params": call})
            assert not any(strategy.ranking.unfinished(f"r{i}") for i in range(3))

    asyncio.run(run())


PLUGINS: dict[str, Callable[[list[Odd]], None]] = {
    made.__name__: made
    for made in (vllm, shadow, recorder, sglang, transformers, ray_serve, litellm)
}


def tried(plugin: Callable[[list[Odd]], None], requests: int) -> int:
    """Runs at least so many requests; how many there were. Raises what a hook raised."""
    seen = 0

    @settings(
        max_examples=-(-requests // 8), deadline=None, database=None, derandomize=True,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(REQUESTS)
    def each(some: list[Odd]) -> None:
        nonlocal seen
        seen += len(some)
        plugin(some)

    each()
    return seen


def _timed(name: str, requests: int) -> tuple[str, int, float]:
    logging.getLogger("lengthwise").setLevel(logging.ERROR)  # each fake warns of each kind once
    start = time.monotonic()
    return name, tried(PLUGINS[name], requests), time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Odd requests for every plugin.")
    parser.add_argument("--requests", type=int, default=100_000, help="in all")
    parser.add_argument("--jobs", type=int, default=1, help="plugins at once")
    options = parser.parse_args()
    each, total = -(-options.requests // len(PLUGINS)), 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for name, seen, took_s in pool.map(_timed, PLUGINS, itertools.repeat(each)):
            total += seen
            print(f"{name}: {seen} odd requests, {took_s:.0f} s", flush=True)
    print(f"{total} odd requests: 0 exceptions in a hook, 0 lost")


if __name__ == "__main__":
    main()
