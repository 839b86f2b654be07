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
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.features import reads_prediction
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.calls import Call, call_of
from lengthwise.policies.plugins.gateways.answer import Answer
from lengthwise.policies.plugins.gateways.endpoints import NUMBERS, Endpoints
from lengthwise.policies.plugins.gateways.metrics import PickerMetrics
from lengthwise.policies.plugins.gateways.prefixes import Prefixes, Prompt
from lengthwise.policies.plugins.gateways.scrape import NAMES, Scraper, Unreachable
from lengthwise.policies.plugins.gateways.sessions import Sticky
from lengthwise.policies.plugins.gateways.waiting import Asked, Waiting
from lengthwise.policies.plugins.part import KNOWN
from lengthwise.policies.plugins.prompt_lengths import Expected, Predict, PromptLengths
from lengthwise.policies.plugins.record import Rows
from lengthwise.policies.plugins.routing import ASKED, DUE, PAIRS, ReplicaRouter
from lengthwise.policies.plugins.scorer import Scorer
from lengthwise.policy import RoutingPolicy
from lengthwise.starvation import UNKNOWN_TOKENS

BACKLOGS = ("prefill_backlog_tokens", "decode_backlog_tokens")
# An endpoint whose metrics can't be read goes on without them: after so many scrapes in a row what
# it last said is forgotten, and the picker's own counts stand in for it.
FORGET_AFTER = 5
DOWN = (502, 503, 504)  # statuses after which an endpoint is looked at without delay
RECENT_EVENTS = 10_000  # of streams, that tell how many tokens an event brings
READ_BODY = 32 * 2**20  # bytes of JSON: beyond it nothing is read of a body
QUEUE_TIMEOUT_S = 0.1  # of one evaluation of the queue's order; slow thrice, it is switched off
LONGEST_RETRY_S = 60.0  # that a client is told to wait
# What a client may say of when it needs its tokens, in ms: the first, and each after it
TTFT = ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms")
TPOT = ("x-slo-tpot-ms", "x-llm-d-slo-tpot-ms")


Due = Callable[[float], float]


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
    shed: str = ""  # a function of routers' features: 429 while it is above 0 at every endpoint
    hold_above: int = 0  # requests under way at every endpoint, beyond which one waits here
    hold: str = ""  # a function likewise: it waits while that is above 0 at every endpoint
    queue: int = 1000  # requests that may wait here at once, and
    queue_timeout_s: float = 30.0  # how long each: beyond either 429
    order: str = ""  # the scheduling policy of those that wait; first come, first served
    fair: bool = False  # of those, the tenant that was served least goes first
    sticky: float | None = None  # tokens that a session stays for; None: no session does
    session_cookie: str = ""  # the name of one that holds a session's name
    fallbacks: int = 0  # further endpoints that are named to the gateway, for its retries
    dry_run: bool = False
    log_requests: bool = False  # one line each, as in a dry run
    record: str = ""
    record_prompts: bool = False
    seed: int = 0


class Refusal(Exception):
    """A request that goes nowhere: the HTTP status for its client, and seconds until it may retry.

    0 where nobody knows.
    """

    def __init__(self, status: int, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = math.ceil(min(retry_s, LONGEST_RETRY_S)) if retry_s > 0 else 0


@dataclass(eq=False)
class Pick:
    """A request under way."""

    endpoint: str
    fallbacks: tuple[str, ...]
    call: Call
    expected: Expected
    arrival_s: float
    sent_s: float = 0.0  # by the monotonic clock
    waited_s: float = 0.0  # in the queue
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
    tokens: float = 0.0  # of answers that ended lately, as the engine counted them, and
    events: float = 0.0  # of their streams: an engine may send several tokens at a time
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

    def ended(self, tokens: int, events: int) -> None:
        """An answer ended: what an event of the next ones is worth."""
        if events:
            self.tokens += tokens
            self.events += events
            if self.events > RECENT_EVENTS:
                self.tokens, self.events = self.tokens / 2, self.events / 2

    @property
    def tokens_per_event(self) -> float:
        """1 while nobody told."""
        return self.tokens / self.events if self.events else 1.0


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
            options.policy, reports=(*NAMES, *BACKLOGS, *numbers, *seats),
            tells=(*ASKED, *DUE, *PAIRS), seed=options.seed,
        )  # fmt: skip
        self._shed, self._hold = (
            self.router.scorer(spec) if spec else None for spec in (options.shed, options.hold)
        )
        gates = [one for one in (self._shed, self._hold) if one is not None]
        reads = {*self.router.policy.score.features, *(name for one in gates for name in one.names)}
        self._waits = "waiting_requests" in reads
        self._backlogs = not set(BACKLOGS).isdisjoint(reads)
        self._prefixes = Prefixes() if not set(PAIRS).isdisjoint(reads) else None
        self.counters = self.router.counters
        self.queue = Waiting(options.order, options.fair, self.counters, QUEUE_TIMEOUT_S)
        self._sticky = None if options.sticky is None else Sticky(options.sticky)
        self.predicts = reads_prediction((*reads, *self.queue.reads))
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

        told = {"free_seats": "max_seats"}
        gates = [spec for spec in (self.options.shed, self.options.hold) if spec]
        for spec in (self.options.policy, *gates):
            for name in load_router(spec).score.features:
                needs = told.get(name, name)
                if needs in NUMBERS and needs not in numbers:
                    raise InputError(
                        f"router {spec!r} reads {name}: say {needs}, or the timing and engine "
                        "options that it follows from, of every endpoint in a file of endpoints"
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
        call, priority, due = _read(body, self._with_session(headers))
        expected = await self._lengths.of(call)
        asked = Asked(call, expected, arrival_s, priority, arrival_s + due(expected.answer), subset)
        pick = None
        self._refuse_shed(asked)
        if not self.queue or self.options.dry_run:
            pick = self._picked(asked)
        self.metrics.seconds.observe(time.perf_counter() - start_s)
        if pick is None:
            pick = await self._waited(asked)
        self.metrics.requests.labels("dry-run" if self.options.dry_run else "picked").inc()
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
        self._stays(pick)
        self._release()

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
        self._release()
        if pick.complete or not pick.answer.ended:
            return
        pick.complete = True
        generated = pick.answer.generated_tokens
        if pick.answer.status != 200 or not generated:
            return
        if state is not None:
            state.ended(generated, pick.answer.events)
        self._lengths.ended(pick.expected, generated)
        if self._rows is not None:
            self._rows.put(self._row(pick, generated))

    # Endpoints

    def _allowed(self, subset: frozenset[str] | None) -> list[str]:
        return [one for one in self.ready if subset is None or one in subset]

    def _candidates(self, subset: frozenset[str] | None) -> list[str]:
        ready = self._allowed(subset)
        if not ready:
            raise self._refusal(503, "no endpoint is ready")
        return ready

    def _refusal(self, status: int, message: str, retry_s: float = 0.0) -> Refusal:
        self.metrics.requests.labels(str(status)).inc()
        return Refusal(status, message, retry_s)

    def _refuse_shed(self, asked: Asked) -> None:
        ready = self._candidates(asked.subset)
        if self._full(ready, self.options.shed_above):
            raise self._refusal(429, "all endpoints have as many requests as they may", 1.0)
        if self._shed is not None and (above := self._above(self._shed, ready, asked)) > 0:
            raise self._refusal(429, "the fleet has more to do than it may have", above)

    def _full(self, ready: list[str], most: int) -> bool:
        return most > 0 and all(len(self._states[one].here) >= most for one in ready)

    def _above(self, gate: Scorer, ready: list[str], asked: Asked) -> float:
        """The least that a gate's function gives for an endpoint; one that fails keeps nobody."""
        scores = self.router.scores(gate, ready, **self._told(ready, asked))
        return 0.0 if np.isnan(scores).any() else float(scores.min())

    def _told(self, ready: list[str], asked: Asked) -> dict[str, Any]:
        """What is told of a request, after what is known of endpoints was reported."""
        if self._waits:
            for address in ready:
                if (waiting := self._states[address].waiting_now) is not None:
                    self.router.report(address, waiting_requests=waiting)
        if self._backlogs:
            self._report_backlogs(ready)
        told: dict[str, Any] = asked.features(time.monotonic() - self._began_s)
        if self._prefixes is not None:
            told["cached_tokens"] = self._prefixes.cached_tokens(_prompt(asked.call), ready)
        return told

    def _picked(self, asked: Asked) -> Pick | None:
        """The request's endpoint, where it counts from now on; None while it is to wait."""
        ready = self._candidates(asked.subset)
        ranked = [str(one) for one in self.router.rank_or_hold(ready, **self._told(ready, asked))]
        if not self.options.dry_run:
            if not ranked or self._full(ready, self.options.hold_above):
                return None
            if self._hold is not None and self._above(self._hold, ready, asked) > 0:
                return None
        first, *others = self._with_last(asked, ranked or ready)
        fallbacks = tuple(others[: self.options.fallbacks])
        pick = Pick(first, fallbacks, asked.call, asked.expected, asked.arrival_s)
        self._place(pick, first)
        self.queue.served(asked)
        return pick

    # Requests that wait

    async def _waited(self, asked: Asked) -> Pick:
        """A request's endpoint once it is its turn; whoever leaves meanwhile waits no longer."""
        if len(self.queue) >= self.options.queue:
            raise self._refusal(
                429, "as many requests as may wait do",
                max(1.0, self.queue.longest_s(time.monotonic() - self._began_s)),
            )  # fmt: skip
        since_s = time.monotonic()
        asked.future = asyncio.get_running_loop().create_future()
        self.queue.add(asked)
        self._release()
        try:
            async with asyncio.timeout(self.options.queue_timeout_s):
                pick: Pick = await asked.future
        except BaseException as error:
            if asked.future.done() and not asked.future.cancelled():
                self.ended(asked.future.result())  # both came at once
            if isinstance(error, TimeoutError):
                if not self._allowed(asked.subset):
                    raise self._refusal(503, "no endpoint is ready") from None
                raise self._refusal(
                    429, f"no endpoint was free for {self.options.queue_timeout_s:g} s",
                    self.options.queue_timeout_s,
                ) from None  # fmt: skip
            raise
        finally:
            self.queue.remove(asked)
            self.metrics.queued.set(len(self.queue))
            self.metrics.waited.observe(time.monotonic() - since_s)
        pick.waited_s = time.monotonic() - since_s
        return pick

    def _release(self) -> None:
        """Sends those whose turn it is to endpoints that take them."""
        if not self.queue:
            return
        for asked in self.queue.in_order(time.monotonic() - self._began_s):
            if asked.future is None or asked.future.done():
                continue
            pick = self._picked(asked) if self._allowed(asked.subset) else None
            if pick is not None:
                self.queue.remove(asked)
                asked.future.set_result(pick)
            elif asked.subset is None:
                break  # nobody overtakes, but where others may go
        self.metrics.queued.set(len(self.queue))

    # Sessions

    def _with_session(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """With a session's name out of its cookie, where nothing else names one."""
        name = self.options.session_cookie
        if not name or "x-session-id" in headers:
            return headers
        for one in headers.get("cookie", "").split(";"):
            key, _, value = one.strip().partition("=")
            if key == name and value:
                return {**headers, "x-session-id": value}
        return headers

    def _with_last(self, asked: Asked, ranked: list[str]) -> list[str]:
        """The ranking; a session's last endpoint first, where that is worth it."""
        session = asked.call.known.get("session_id")
        if self._sticky is None or not session:
            return ranked
        last = self._sticky.endpoint(str(session))
        if last is None or last not in ranked:
            return ranked
        if self._load(last) - self._load(ranked[0]) > self._sticky.worth:
            return ranked
        return [last, *(one for one in ranked if one != last)]

    def _stays(self, pick: Pick) -> None:
        """The next request of its session looks at where this one went first."""
        session = pick.call.known.get("session_id")
        if self._sticky is not None and session:
            self._sticky.sent(str(session), pick.endpoint)

    def _load(self, address: str) -> float:
        """Tokens of prompts and expected answers that are under way there."""
        here = self._states[address].here
        return sum(one.expected.prompt + one.expected.answer for one in here)

    def _place(self, pick: Pick, address: str) -> None:
        pick.sent_s = time.monotonic()
        self._states[address].here[pick] = None
        self.router.sent(address, pick, pick.expected.prompt + pick.expected.answer)
        self.metrics.picks.labels(address).inc()
        self._stays(pick)
        if self._prefixes is not None:
            self._prefixes.sent(_prompt(pick.call), address)

    def _report_backlogs(self, addresses: list[str]) -> None:
        """What is left to do, by the picker's own books: events of streams stand for tokens."""
        for address in addresses:
            state = self._states[address]
            prefill = decode = 0.0
            worth = state.tokens_per_event
            for pick in state.here:
                events = pick.answer.events
                prefill += pick.expected.prompt if not events else 0.0
                decode += max(pick.expected.answer - worth * events, 0.0)
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
        self._release()

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
        self._release()

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
                "waited_s": round(pick.waited_s, 3),
            }
        )

    def tell_refused(self, refusal: Refusal, request_id: str) -> None:
        """Logs a request that went nowhere, or would have gone nowhere."""
        shown = client.shown(request_id)
        self._log({"request_id": shown, "refused": refusal.status, "why": str(refusal)})


def _prompt(call: Call) -> Prompt:
    return call.text or call.tokens or ""


def _read(body: bytes, headers: Mapping[str, str]) -> tuple[Call, float, Due]:
    """A call, its priority, and when it is due; nothing of what is no JSON.

    That is for the engine to refuse.
    """
    try:
        said = json.loads(body) if 0 < len(body) <= READ_BODY else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return call_of({"headers": dict(headers)}), 0.0, _due({}, headers)
    try:
        call = call_of({**said, "headers": dict(headers)})
    except Exception as error:  # of a shape that nobody thought of
        logging.getLogger("lengthwise").debug("a call can't be read: %r", type(error))
        return call_of({"headers": dict(headers)}), 0.0, _due({}, headers)
    return call, client.number(said.get("priority")) or 0.0, _due(said, headers)


def _due(said: Mapping[str, Any], headers: Mapping[str, str]) -> Due:
    """In how many seconds an answer of so many tokens is due; infinity where nobody says.

    As the client says for vLLM (``vllm_xargs``), or by objectives for its first and further tokens.
    """
    sent = said.get("vllm_xargs")
    seconds = client.number(sent.get("deadline_s")) if isinstance(sent, dict) else None
    if seconds is not None:
        return lambda tokens: seconds
    ttft, tpot = (
        next((n for name in names if (n := client.length(headers.get(name))) is not None), None)
        for names in (TTFT, TPOT)
    )
    if ttft is None and tpot is None:
        return lambda tokens: math.inf
    return lambda tokens: ((ttft or 0.0) + (tpot or 0.0) * tokens) / 1000
