"""Which endpoint a request goes to, and the books of those under way; no gateway's protocol.

A request is ``pick``ed once its body is there, its answer is watched as it passes by, and ``ended``
is called however it ends. What an endpoint says of itself is as old as the last scrape, what the
picker counts is not: so it is in the simulator (``metrics_interval``). To the requests that waited
then it adds those that it has sent since.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.features import reads_prediction
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.calls import Call, call_of
from lengthwise.policies.plugins.gateways.answer import Answer
from lengthwise.policies.plugins.gateways.endpoints import NUMBERS, Endpoints
from lengthwise.policies.plugins.gateways.metrics import PickerMetrics
from lengthwise.policies.plugins.gateways.prefixes import Prefixes
from lengthwise.policies.plugins.gateways.scrape import NAMES, Scraper, Unreachable
from lengthwise.policies.plugins.part import KNOWN
from lengthwise.policies.plugins.prompt_lengths import Expected, Predict, PromptLengths
from lengthwise.policies.plugins.record import Rows
from lengthwise.policies.plugins.routing import ASKED, PAIRS, ReplicaRouter
from lengthwise.policy import RoutingPolicy
from lengthwise.starvation import UNKNOWN_TOKENS

BACKLOGS = ("prefill_backlog_tokens", "decode_backlog_tokens")
# An endpoint whose metrics can't be read goes on without them: after so many scrapes in a row what
# it last said is forgotten, and the picker's own counts stand in for it.
FORGET_AFTER = 5
DOWN = (502, 503, 504)  # statuses after which an endpoint is looked at without delay
READ_BODY = 32 * 2**20  # bytes of JSON: beyond it nothing is read of a body


@dataclass(frozen=True)
class Options:
    """How a picker picks; limits that are 0 are off."""

    policy: str | RoutingPolicy = "least-tokens"
    predictor: Predict | str | None = None
    default_tokens: float = UNKNOWN_TOKENS
    predict_timeout_s: float = 0.1
    scrape_interval_s: float = 0.5
    metrics_path: str = "/metrics"
    refresh_s: float = 2.0  # the endpoints' file, and DNS
    shed_above: int = 0  # requests under way at every endpoint, beyond which one is answered 429
    fallbacks: int = 0  # further endpoints that are named to the gateway, for its retries
    dry_run: bool = False
    record: str = ""
    record_prompts: bool = False
    seed: int = 0


class Refusal(Exception):
    """A request that goes nowhere, with the HTTP status for its client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(eq=False)
class Pick:
    """A request under way."""

    endpoint: str
    fallbacks: tuple[str, ...]
    call: Call
    expected: Expected
    arrival_s: float
    sent_s: float = 0.0  # by the monotonic clock
    answer: Answer = field(default_factory=Answer)
    complete: bool = False

    @property
    def header(self) -> str:
        """As the protocol has it: the endpoint, and those to try after it."""
        return ",".join((self.endpoint, *self.fallbacks))


@dataclass
class _State:
    """What is known of one endpoint."""

    up: bool = False
    unread: int = 0  # scrapes in a row that told nothing
    waiting: float | None = None  # requests, as of the last scrape
    asked_s: float = 0.0  # when that was, by the monotonic clock
    here: dict[Pick, None] = field(default_factory=dict)  # in the order in which they were sent

    @property
    def waiting_now(self) -> float | None:
        """Those that waited then, and those sent since, which no scrape has seen yet."""
        if self.waiting is None:
            return None
        since = 0
        for pick in reversed(self.here):
            if pick.sent_s < self.asked_s:
                break
            since += 1
        return self.waiting + since


class Picker:
    """Picks endpoints by a routing policy; a context manager of one event loop.

    Raises ``InputError`` for a policy that reads what nobody tells it, for a folder that holds no
    predictor, and for a record that can't be written. ``log`` gets a line for each request in a
    dry run; nothing of a prompt is ever in it.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        options: Options,
        log: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ) -> None:
        self.options, self.endpoints = options, endpoints
        self._log = log
        described = [set(one.numbers) for one in endpoints.known.values()]
        numbers = [name for name in NUMBERS if described and all(name in d for d in described)]
        self._numbers = numbers
        seats = ["free_seats"] if "max_seats" in numbers else []
        self._refuse_unknown(numbers)
        self.router = ReplicaRouter(
            options.policy, reports=(*NAMES, *BACKLOGS, *numbers, *seats), tells=(*ASKED, *PAIRS),
            seed=options.seed,
        )  # fmt: skip
        reads = self.router.policy.score.features
        self._waits = "waiting_requests" in reads
        self._backlogs = not set(BACKLOGS).isdisjoint(reads)
        self._prefixes = Prefixes() if not set(PAIRS).isdisjoint(reads) else None
        self.predicts = reads_prediction(reads)
        self.counters = self.router.counters
        self._lengths = PromptLengths(
            options.predictor, options.predict_timeout_s, options.default_tokens, self.counters
        )
        self._rows: Rows | None = None
        if options.record:
            self._rows = Rows(
                options.record, options.record_prompts, {"tokenizer": ""}, self.counters
            )
        self.metrics = PickerMetrics()
        self.synced = asyncio.Event()  # every endpoint was looked at
        self._states: dict[str, _State] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._soon: dict[str, asyncio.Event] = {}
        self._began_s = time.monotonic()

    def _refuse_unknown(self, numbers: list[str]) -> None:
        from lengthwise.policies.load import load_router

        reads = load_router(self.options.policy).score.features
        told = {"free_seats": "max_seats"}
        for name in reads:
            needs = told.get(name, name)
            if needs in NUMBERS and needs not in numbers:
                raise InputError(
                    f"router {self.options.policy!r} reads {name}: say {needs}, or the timing and "
                    "engine options that it follows from, of every endpoint in a file of endpoints"
                )

    async def __aenter__(self) -> Picker:
        self._scraper = Scraper(
            self.options.metrics_path, timeout_s=max(0.2, min(self.options.scrape_interval_s, 2.0))
        )
        await self._scraper.__aenter__()
        self._follow()
        self._refreshing = asyncio.create_task(self._refresh())
        return self

    async def __aexit__(self, *error: object) -> None:
        tasks = [self._refreshing, *self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._scraper.__aexit__()
        if self._rows is not None:
            await asyncio.to_thread(self._rows.close)

    @property
    def under_way(self) -> int:
        """Requests that were picked and have not ended."""
        return sum(len(state.here) for state in self._states.values())

    @property
    def ready(self) -> list[str]:
        """Endpoints that may be picked."""
        return [address for address, state in self._states.items() if state.up]

    async def pick(
        self, body: bytes, headers: Mapping[str, str], subset: frozenset[str] | None = None
    ) -> Pick:
        """The endpoint for a request, which counts as sent there from now on.

        ``headers`` are by lower-case name; ``subset`` are those that the gateway allows, None for
        all. Raises ``Refusal``.
        """
        start_s = time.perf_counter()
        arrival_s = time.monotonic() - self._began_s
        call, priority = _read(body, headers)
        expected = await self._lengths.of(call)
        candidates = self._candidates(subset)
        if self._waits:
            for address in candidates:
                if (waiting := self._states[address].waiting_now) is not None:
                    self.router.report(address, waiting_requests=waiting)
        if self._backlogs:
            self._report_backlogs(candidates)
        told: dict[str, Any] = {}
        if self._prefixes is not None:
            told["cached_tokens"] = self._prefixes.cached_tokens(call.text, candidates)
        ranked = self.router.rank(
            candidates, prompt_tokens=expected.prompt, predicted_tokens=expected.answer,
            priority=priority, arrival_s=arrival_s, now_s=time.monotonic() - self._began_s, **told,
        )  # fmt: skip
        first, *others = map(str, ranked)
        pick = Pick(first, tuple(others[: self.options.fallbacks]), call, expected, arrival_s)
        self._place(pick, first)
        self.metrics.requests.labels("dry-run" if self.options.dry_run else "picked").inc()
        self.metrics.seconds.observe(time.perf_counter() - start_s)
        return pick

    def served_by(self, pick: Pick, address: str) -> None:
        """The gateway says who serves a request, which need not be the one that was picked.

        Somebody who is not among the endpoints is nobody.
        """
        if address == pick.endpoint or address not in self._states:
            return
        left = self._states.get(pick.endpoint)  # which may be gone by now
        if left is None or pick in left.here:
            if left is not None:
                del left.here[pick]
            self._states[address].here[pick] = None
            self.router.moved(address, pick)
        pick.endpoint = address

    def answered(self, pick: Pick, status: int) -> None:
        """The head of an answer came by."""
        pick.answer.status = status
        if status in DOWN and pick.endpoint in self._soon:
            self._soon[pick.endpoint].set()

    def ended(self, pick: Pick) -> None:
        """A request ended, well or not; only the first call for it counts."""
        state = self._states.get(pick.endpoint)
        if state is not None:
            state.here.pop(pick, None)
        self.router.done(pick)
        if pick.complete or not pick.answer.ended:
            return
        pick.complete = True
        generated = pick.answer.generated_tokens
        if pick.answer.status != 200 or not generated:
            return
        self._lengths.ended(pick.expected, generated)
        if self._rows is not None:
            self._rows.put(self._row(pick, generated))

    # Endpoints

    def _candidates(self, subset: frozenset[str] | None) -> list[str]:
        ready = [one for one in self.ready if subset is None or one in subset]
        if not ready:
            self.metrics.requests.labels("503").inc()
            raise Refusal(503, "no endpoint is ready")
        most = self.options.shed_above
        if most and all(len(self._states[one].here) >= most for one in ready):
            self.metrics.requests.labels("429").inc()
            raise Refusal(429, "all endpoints have as many requests as they may")
        return ready

    def _place(self, pick: Pick, address: str) -> None:
        pick.sent_s = time.monotonic()
        self._states[address].here[pick] = None
        self.router.sent(address, pick, pick.expected.prompt + pick.expected.answer)
        self.metrics.picks.labels(address).inc()
        if self._prefixes is not None:
            self._prefixes.sent(pick.call.text, address)

    def _report_backlogs(self, addresses: list[str]) -> None:
        """What is left to do, by the picker's own books: a token is about an event of a stream."""
        for address in addresses:
            prefill = decode = 0.0
            for pick in self._states[address].here:
                events = pick.answer.events
                prefill += pick.expected.prompt if not events else 0.0
                decode += max(pick.expected.answer - events, 0.0)
            self.router.report(
                address, prefill_backlog_tokens=prefill, decode_backlog_tokens=decode
            )

    def _follow(self) -> None:
        """Watches the endpoints that there are now, and no others."""
        known = self.endpoints.known
        for address in [one for one in self._states if one not in known]:
            self._watches.pop(address).cancel()
            del self._states[address], self._soon[address]
            self.metrics.forget(address)
        self.router.keep(list(known))
        if self._prefixes is not None:
            self._prefixes.keep(known)
        for address, endpoint in known.items():
            lacking = [name for name in self._numbers if name not in endpoint.numbers]
            if lacking:
                self.counters.warn(
                    "endpoint-numbers",
                    f"endpoint {address} does not say its {', '.join(lacking)}, which count as 0",
                )
            self.router.report(address, **endpoint.numbers)
            if address not in self._states:
                self._states[address] = _State()
                self._soon[address] = asyncio.Event()
                self._watches[address] = asyncio.create_task(self._watch(address))
                self.metrics.up.labels(address).set(0)
        if not known:
            self.synced.set()

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self.options.refresh_s)
            try:
                if await self.endpoints.refresh():
                    self._follow()
            except LengthwiseError as error:
                self.counters.warn("endpoints", f"the endpoints stay as they were: {error}")

    async def _watch(self, address: str) -> None:
        """Looks at an endpoint again and again."""
        interval_s = self.options.scrape_interval_s
        while True:
            start_s = time.monotonic()
            await self._look(address)
            if not self.synced.is_set() and all(
                state.up or state.unread for state in self._states.values()
            ):
                self.synced.set()
            left_s = max(interval_s - (time.monotonic() - start_s), 0.02)
            with suppress(TimeoutError):
                # not wait_for, which loses a cancellation that comes with the event (Python 3.11)
                async with asyncio.timeout(left_s):
                    await self._soon[address].wait()
                await asyncio.sleep(0.02)  # many may fail at once
            self._soon[address].clear()

    async def _look(self, address: str) -> None:
        endpoint, state = self.endpoints.known.get(address), self._states.get(address)
        if endpoint is None or state is None:
            return
        asked_s = time.monotonic()
        try:
            seen = await self._scraper.seen(endpoint)
        except Unreachable:
            state.up, state.unread = False, state.unread + 1
            self.metrics.scrapes.labels("unreachable").inc()
        except ValueError as error:  # it may serve all the same
            state.up, state.unread = True, state.unread + 1
            self.metrics.scrapes.labels("unreadable").inc()
            self.counters.warn("scrape", f"the metrics of {address} can't be read: {error}")
            if state.unread == FORGET_AFTER:
                self.router.forget(address, NAMES)
                state.waiting = None
        else:
            state.up, state.unread = True, 0
            self.metrics.scrapes.labels("read").inc()
            features = dict(seen.features)
            if "max_seats" in endpoint.numbers and "running_requests" in features:
                free = endpoint.numbers["max_seats"] - features["running_requests"]
                features["free_seats"] = max(free, 0.0)
            state.waiting, state.asked_s = features.get("waiting_requests"), asked_s
            self.router.report(address, **features)
            if self._prefixes is not None and seen.block_size:
                self._prefixes.size[address] = seen.block_size
        self.metrics.up.labels(address).set(float(state.up))

    # What is kept of requests

    def _row(self, pick: Pick, generated: int) -> dict[str, Any]:
        expected, call, known = pick.expected, pick.call, pick.call.known
        prompt_tokens = pick.answer.prompt_tokens
        reason = pick.answer.finish_reason
        return {
            "request_id": f"{id(pick):x}-{pick.arrival_s:.6f}",
            "arrival_s": pick.arrival_s,
            "prompt": call.asked,
            "prompt_tokens": round(expected.prompt) if prompt_tokens is None else prompt_tokens,
            "predicted_tokens": None if expected.source == "default" else expected.answer,
            "predicted_by": None if expected.source == "default" else expected.source,
            "output_tokens": generated,
            "max_tokens": None if call.limit == float("inf") else int(call.limit),
            "model": known.get("model", ""),
            **{name: known.get(name) for name in KNOWN},
            "finish_reason": reason if reason in ("stop", "length") else "error",
        }

    def tell(self, pick: Pick, request_id: str) -> None:
        """Logs what was chosen, or would have been, beside who served."""
        self._log(
            {
                "request_id": client.shown(request_id),
                "chosen": pick.header,
                "served": pick.endpoint,
                "prompt_tokens": round(pick.expected.prompt),
                "predicted_tokens": round(pick.expected.answer, 1),
                "predicted_by": pick.expected.source,
                "output_tokens": pick.answer.generated_tokens,
                "status": pick.answer.status,
            }
        )


def _read(body: bytes, headers: Mapping[str, str]) -> tuple[Call, float]:
    """A call and its priority; nothing of what is no JSON: that is for the engine to refuse."""
    try:
        said = json.loads(body) if 0 < len(body) <= READ_BODY else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return call_of({"headers": dict(headers)}), 0.0
    try:
        call = call_of({**said, "headers": dict(headers)})
    except Exception as error:  # of a shape that nobody thought of
        logging.getLogger("lengthwise").debug("a call can't be read: %r", type(error))
        return call_of({"headers": dict(headers)}), 0.0
    return call, client.number(said.get("priority")) or 0.0
