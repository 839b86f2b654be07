"""Routing policies in vLLM's production stack: its router, with ours in place of one of its own.

    python -m lengthwise.policies.plugins.production_stack \\
        --lengthwise '{"policy": "least-tokens", "predictor": "./p"}' \\
        --service-discovery static --static-backends http://10.0.0.1:8000,http://10.0.0.2:8000 ...

All other options are the router's own. It has a list of routing classes and no door for more: ours
stands in place of its prefix-aware one, the kind that is told a request's body.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.gateways.answer import Answer
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.prompt_lengths import Expected, PromptLengths
from lengthwise.policies.plugins.routing import ReplicaRouter

OPTION = "--lengthwise"
EXAMPLE = f"""{OPTION} '{{"policy": "least-tokens"}}'"""
SETTINGS = ("policy", "predictor", "reports", "default_tokens", "predict_timeout_s", "seed")
TELLS = ("prompt_tokens", "predicted_tokens", "now_s", "arrival_s")
# Of what the router scrapes, by our names. Its KV use has the name that vLLM had before 0.11.
REPORTS = {"running_requests": "num_running_requests", "waiting_requests": "num_queuing_requests"}
INSTEAD = "PrefixAwareRouter", "prefixaware"  # the router's class, and what its option calls it
TRIED = "vllm-stack-0.1.9 and later (a6c01db)"


class Noted(NamedTuple):
    """A request under way."""

    number: int
    expected: Expected


class StackRouting:
    """What the router's class does, and what hears of answers: a policy, and the books.

    ``reports`` names those of ``REPORTS`` that are believed of engines, as old as the last scrape
    (``--engine-stats-interval``); without them our own counts stand in, which are never old and
    know of no other router. Raises ``InputError`` for a policy that reads what nobody tells, and
    for a folder that holds no predictor.
    """

    def __init__(
        self,
        policy: str,
        predictor: str = "",
        reports: Sequence[str] = (),
        default_tokens: float = 256.0,
        predict_timeout_s: float = 0.5,
        seed: int = 0,
    ) -> None:
        for name in reports:
            if name not in REPORTS:
                raise UnknownNameError("report of vLLM's production stack", str(name), REPORTS)
        self.ranking = ReplicaRouter(policy, reports=reports, tells=TELLS, seed=seed)
        self._reports = {name: REPORTS[name] for name in reports}
        self._lengths = PromptLengths(
            predictor or None, predict_timeout_s, default_tokens, self.ranking.counters
        )
        self._under_way: dict[int, Noted] = {}  # by the identity of the request's ASGI state
        self._numbers = 0

    @property
    def counters(self) -> Counters:
        """What was predicted and what fell back."""
        return self.ranking.counters

    async def route_request(
        self,
        endpoints: Sequence[Any],
        engine_stats: Mapping[str, Any],
        request_stats: Mapping[str, Any],
        request: Any,
        request_json: Mapping[str, Any],
    ) -> str:
        """The URL of the endpoint that the policy ranks first; the request counts there from now.

        The router asks again for one that an endpoint did not take, which then counts elsewhere.
        """
        urls = [endpoint.url for endpoint in endpoints]
        for url in urls:
            said = engine_stats.get(url)
            told = {name: getattr(said, theirs, None) for name, theirs in self._reports.items()}
            if known := {name: value for name, value in told.items() if value is not None}:
                self.ranking.report(url, **known)
        key = id(request.scope["state"])
        noted = self._under_way.get(key)
        if noted is None:
            asked = call_of({**request_json, "headers": dict(request.headers)})
            noted = Noted(self._numbers, await self._lengths.of(asked))
            self._numbers += 1
            self._under_way[key] = noted
        else:
            self.ranking.done(noted.number)
        expected, now_s = noted.expected, time.monotonic()
        best, *_ = self.ranking.rank(
            urls, prompt_tokens=expected.prompt, predicted_tokens=expected.answer,
            now_s=now_s, arrival_s=now_s,
        )  # fmt: skip
        self.ranking.sent(best, noted.number, expected.prompt + expected.answer)
        return str(best)

    def ended(self, key: int, answer: Answer) -> None:
        """A request ended, well or not, perhaps one that was never routed."""
        noted = self._under_way.pop(key, None)
        if noted is None:
            return
        self.ranking.done(noted.number)
        if answer.ended and answer.status == 200 and (generated := answer.generated_tokens):
            self._lengths.ended(noted.expected, generated)


class Watch:
    """ASGI middleware around the router's application: hears how each request ends.

    The router itself tells nobody of a client that breaks off a stream.
    """

    def __init__(self, app: Any, routing: StackRouting) -> None:
        self._app, self._routing = app, routing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = Answer()

        async def heard(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
            elif message["type"] == "http.response.body":
                answer.feed(message.get("body", b""))
                answer.ended = not message.get("more_body", False)
            await send(message)

        state = scope["state"] = dict(scope.get("state") or {})  # of this request alone
        try:
            await self._app(scope, receive, heard)
        finally:
            self._routing.ended(id(state), answer)


def routing_of(given: Any) -> StackRouting:
    """From the JSON of ``--lengthwise``; raises ``InputError`` for what can't work."""
    if not isinstance(given, Mapping):
        raise InputError(f"{OPTION} takes an object, as in {EXAMPLE}")
    for name in given:
        if name not in SETTINGS:
            raise UnknownNameError(f"setting of {OPTION}", str(name), SETTINGS)
    if not isinstance(given.get("policy"), str):
        raise InputError(f"{OPTION} takes a policy, as in {EXAMPLE}")
    for name in ("default_tokens", "predict_timeout_s", "seed"):
        if name in given and (client.number(given[name]) is None or given[name] < 0):
            raise InputError(f"{name} in {OPTION} must be a number, not {given[name]!r}")
    return StackRouting(**given)


def install(routing: StackRouting) -> Any:
    """Puts our class in the router's place for one; returns its application's module.

    Raises ``InputError`` where there is no such router.
    """
    try:
        from vllm_router import app as application
        from vllm_router.routers import routing_logic
    except ImportError as error:
        raise InputError(
            f"this needs the Python router of vLLM's production stack ({error}): pip install "
            "git+https://github.com/vllm-project/production-stack (vllm-router on PyPI is another)"
        ) from None
    name, _ = INSTEAD
    base = getattr(routing_logic, name, None)
    if base is None or not hasattr(routing_logic, "initialize_routing_logic"):
        raise InputError(f"this production stack has no {name}; tried with {TRIED}")

    def made(self: Any, prefix_min_match_length: int = 0) -> None: ...  # in place of its own

    async def route_request(self: Any, *args: Any) -> str:
        return await routing.route_request(*args)

    ours = type(base)("LengthwiseRouter", (base,), {
        "__init__": made, "route_request": route_request, "__module__": __name__,
    })  # fmt: skip
    setattr(routing_logic, name, ours)
    application.app.add_middleware(Watch, routing=routing)
    return application


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts the router with these arguments, of which ``--lengthwise JSON`` is ours."""
    rest = list(sys.argv[1:] if arguments is None else arguments)
    try:
        routing = _settings(rest)
        application = install(routing)
    except InputError as error:
        print(f"lengthwise: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.argv = ["vllm-router", "--routing-logic", INSTEAD[1], *rest]
    application.main()


def _settings(rest: list[str]) -> StackRouting:
    """Takes our option out of the arguments."""
    if any(one.split("=")[0] == "--routing-logic" for one in rest):
        raise InputError("--routing-logic is lengthwise's here: leave it out")
    for at, one in enumerate(rest):
        if one == OPTION and at + 1 < len(rest):
            text = rest[at + 1]
            del rest[at : at + 2]
        elif one.startswith(f"{OPTION}="):
            text = one.partition("=")[2]
            del rest[at]
        else:
            continue
        try:
            given = json.loads(text)
        except ValueError as error:
            raise InputError(f"{OPTION} takes JSON, as in {EXAMPLE}: {error}") from None
        return routing_of(given)
    raise InputError(f"say what is to route: {EXAMPLE}")


if __name__ == "__main__":
    main()
