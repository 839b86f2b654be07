"""The latency predictor's contract of llm-d, over HTTP, answered by a ``LatencyModel``.

Its endpoint picker asks ``POST /predict`` and ``/predict/bulk/strict`` before it picks, and tells
``POST /add_training_data_bulk`` what became of requests. Both of its servers, for predictions and
for training, are this one (llm-d/llm-d-latency-predictor, as of commit 04e44cd).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from lengthwise.eval.latency import LatencyModel, Seen
from lengthwise.listening import listening

MOST = 10_000  # requests of a bulk
MOST_BYTES = 32 * 2**20
# Of the three that its client knows, the one that it asks for predictions over HTTP.
MODEL_TYPE = "lightgbm"
# name -> whether a whole number, its largest value, and whether it may be left out (it is 0 then)
FIELDS: Mapping[str, tuple[bool, float, bool]] = {
    "kv_cache_percentage": (False, 1.0, False),
    "input_token_length": (True, 2.0**53, False),
    "num_request_waiting": (True, 2.0**53, False),
    "num_request_running": (True, 2.0**53, False),
    "num_tokens_generated": (True, 2.0**53, False),
    "prefix_cache_score": (False, 1.0, False),
    "prefill_tokens_in_flight": (True, 2.0**53, True),
    "decode_tokens_in_flight": (True, 2.0**53, True),
    "encoder_matched_size": (True, 2.0**53, True),
    "encoder_input_size": (True, 2.0**53, True),
}
OBSERVED: Mapping[str, tuple[bool, float, bool]] = {
    "actual_ttft_ms": (False, 2.0**53, False), "actual_tpot_ms": (False, 2.0**53, False),
}  # fmt: skip


class Invalid(Exception):
    """A body that is not as the contract has it: where, and why."""

    def __init__(self, where: list[Any], why: str) -> None:
        super().__init__(why)
        self.detail = [{"loc": ["body", *where], "msg": why, "type": "value_error"}]


class LatencyServer:
    """The HTTP application; ``app`` is what aiohttp runs."""

    def __init__(self, model: LatencyModel, quantile: float | None = 0.9) -> None:
        self.model = model
        self._quantile = quantile
        self._began = datetime.now(UTC).isoformat()
        self.served = 0
        self.app = web.Application(client_max_size=MOST_BYTES)
        self.app.add_routes(
            [
                web.post("/predict", self._predict),
                web.post("/predict/bulk", self._bulk),
                web.post("/predict/bulk/strict", self._bulk),
                web.post("/add_training_data_bulk", self._observe),
                web.post("/reload", self._reload),
                web.get("/status", self._status),
                web.get("/", _health),
                web.get("/healthz", _health),
                web.get("/readyz", _ready),
                web.get("/model/download/info", self._info),
                web.get("/metrics", self._metrics),
            ]
        )

    async def _predict(self, http: web.Request) -> web.Response:
        try:
            seen = read(await _json(http), [])
        except Invalid as error:
            return _refused(error)
        return web.json_response(self._said(seen))

    async def _bulk(self, http: web.Request) -> web.Response:
        start_s = time.perf_counter()
        try:
            rows = _rows(await _json(http), "requests")
            if not rows:
                raise Invalid(["requests"], "has no requests")
            seen = [read(row, ["requests", place]) for place, row in enumerate(rows)]
        except Invalid as error:
            return _refused(error)
        found: dict[str, Any] = {
            "predictions": [self._said(one) for one in seen],
            "total_requests": len(seen), "successful_predictions": len(seen),
            "failed_predictions": 0,
        }  # fmt: skip
        if not http.path.endswith("strict"):
            found["errors"] = []
        found["processing_time_ms"] = 1000 * (time.perf_counter() - start_s)
        return web.json_response(found)

    async def _observe(self, http: web.Request) -> web.Response:
        try:
            rows = _rows(await _json(http), "entries")
            told = []
            for place, row in enumerate(rows):
                where = ["entries", place]
                seen = read(row, where)
                ttft, tpot = (_number(row, name, OBSERVED[name], where) for name in OBSERVED)
                told.append((seen, ttft / 1000, tpot / 1000))
        except Invalid as error:
            return _refused(error)
        for place, one in enumerate(told):
            self.model.observe(*one)
            if place % 100 == 99:
                await asyncio.sleep(0)  # who asks meanwhile does not wait for all of them
        return web.json_response({"message": f"Accepted {len(told)} training samples."}, status=202)

    async def _status(self, http: web.Request) -> web.Response:
        return web.json_response(
            {
                "is_ready": True, **self._kind(), "last_model_load": self._began,
                "training_server_url": "", "ensemble_active": False,
                "models_exist": {"ttft_model": True, "tpot_model": True},
            }
        )  # fmt: skip

    async def _reload(self, http: web.Request) -> web.Response:
        """There is nothing to load: what was observed counts at once."""
        return web.json_response(
            {"synced": False, "loaded": True, "is_ready": True, **self._kind(),
             "last_load_time": self._began}
        )  # fmt: skip

    async def _info(self, http: web.Request) -> web.Response:
        """Asked by its client as it starts."""
        return web.json_response(
            {
                **self._kind(), "available_endpoints": {"status": "/status"},
                "model_status": {"ttft_model_ready": True, "tpot_model_ready": True},
            }
        )  # fmt: skip

    async def _metrics(self, http: web.Request) -> web.Response:
        observed = self.model.observed.items()
        lines = [
            "# HELP lengthwise_latency_predictions_total Requests predicted.",
            "# TYPE lengthwise_latency_predictions_total counter",
            f"lengthwise_latency_predictions_total {self.served}",
            "# HELP lengthwise_latency_observed_total Latencies observed.",
            "# TYPE lengthwise_latency_observed_total counter",
            *(f'lengthwise_latency_observed_total{{of="{name}"}} {n}' for name, n in observed),
        ]
        return web.Response(
            text="\n".join(lines) + "\n", headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    def _kind(self) -> dict[str, Any]:
        mean = self._quantile is None
        return {
            "model_type": MODEL_TYPE, "objective_type": "mean" if mean else "quantile",
            "quantile": 0.5 if mean else self._quantile,
        }  # fmt: skip

    def _said(self, seen: Seen) -> dict[str, Any]:
        self.served += 1
        ttft_s, tpot_s = self.model.predict(seen)
        return {
            "ttft_ms": 1000 * ttft_s, "tpot_ms": 1000 * tpot_s, **self._kind(),
            "predicted_at": datetime.now(UTC).isoformat(), "last_model_load": self._began,
        }  # fmt: skip


def read(row: Any, where: list[Any]) -> Seen:
    """A request of the contract; raises ``Invalid`` for what is none."""
    if not isinstance(row, dict):
        raise Invalid(where, "is not an object")
    number = {name: _number(row, name, rule, where) for name, rule in FIELDS.items()}
    role = row.get("pod_type") or ""
    if not isinstance(role, str):
        raise Invalid([*where, "pod_type"], "is not a string")
    return Seen(
        number["kv_cache_percentage"], int(number["input_token_length"]),
        int(number["num_request_waiting"]), int(number["num_request_running"]),
        int(number["num_tokens_generated"]), number["prefix_cache_score"],
        int(number["prefill_tokens_in_flight"]), int(number["decode_tokens_in_flight"]), role,
    )  # fmt: skip


def _number(
    row: Mapping[str, Any], name: str, rule: tuple[bool, float, bool], where: list[Any]
) -> float:
    whole, most, optional = rule
    if name not in row:
        if optional:
            return 0.0
        raise Invalid([*where, name], "Field required")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid([*where, name], "is not a number")
    if not 0 <= value <= most:
        raise Invalid([*where, name], f"is not between 0 and {most:g}")
    if whole and value != int(value):
        raise Invalid([*where, name], "is not a whole number")
    return float(value)


def _rows(said: Any, name: str) -> list[Any]:
    rows = said.get(name) if isinstance(said, dict) else None
    if not isinstance(rows, list):
        raise Invalid([name], "Field required")
    if len(rows) > MOST:
        raise Invalid([name], f"has more than {MOST} rows")
    return rows


async def _json(http: web.Request) -> Any:
    try:
        return json.loads(await http.read())
    except (ValueError, RecursionError):
        raise Invalid([], "is not JSON") from None


def _refused(error: Invalid) -> web.Response:
    return web.json_response({"detail": error.detail}, status=422)


async def _health(http: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "message": "lengthwise serve-latency is running"})


async def _ready(http: web.Request) -> web.Response:
    return web.json_response({"status": "ready"})


async def serve(
    server: LatencyServer, host: str, port: int, ended: asyncio.Event, say: Callable[[str], None]
) -> None:
    """Serves until ``ended`` is set. Raises ``InputError`` for a port that can't be had."""
    runner = await listening(server.app, host, port)
    try:
        say(f"latency predictor at http://{host}:{runner.addresses[0][1]}")
        await ended.wait()
    finally:
        await runner.cleanup()
