"""Real servers behind real Envoy: what the measurement sends, and what becomes of its results."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

import lengthwise as lw
from benchmarks import gpu_gateway
from benchmarks.gpu_routers import REQUESTS, RESULTS
from lengthwise.errors import InputError
from lengthwise.eval.mock import fleet
from lengthwise.eval.setting import Setting
from lengthwise.serving.mock.server import Serving

TIMING = "h200/llama-3.1-8b"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    gpu_gateway.main(
        ["prepare", str(folder), "--seats", "4,1", "--longest", "64,8", "--seconds", "2",
         "--routers", "round-robin,jsew", "--options", "--block-size 32"]
    )  # fmt: skip
    return folder


def test_the_plan_is_read_as_it_was_written(data: Path) -> None:
    plan = gpu_gateway.Plan.read(data)
    assert (plan.seats, plan.routers, plan.timing) == ((4, 1), ("round-robin", "jsew"), TIMING)
    assert max(np.array(json.loads((data / REQUESTS).read_text()))[:, 1]) <= 8
    line = gpu_gateway.command_of(plan, 4, 8000, "vllm", Path("model"))
    for flag, value in (("--max-num-seqs", "4"), ("--port", "8000"), ("--block-size", "32"),
                        ("--max-num-batched-tokens", "2048"), ("--model", "model")):  # fmt: skip
        assert line[line.index(flag) + 1] == value
    assert "mock-server" in gpu_gateway.command_of(plan, 4, 8000, "mock", Path("model"))


def test_requests_are_sent_at_their_times_and_their_answers_are_whole(data: Path) -> None:
    """To a server without a gateway, as the calibration does."""
    plan = gpu_gateway.Plan.read(data)
    requests = np.array(json.loads((data / REQUESTS).read_text()))

    async def run() -> None:
        setting = Setting(lw.Engine(max_num_seqs=4), timing=TIMING)
        (server,) = fleet(setting, "fcfs", None, Serving(port=0, model=gpu_gateway.MODEL))
        async with server:
            rows = gpu_gateway.arrivals(requests, [0.0, 0.0, 0.3])
            (found,) = await gpu_gateway.each([server.url.removeprefix("http://")], [rows])
            assert found["output_tokens"] == requests[:3, 1].tolist()
            assert 0.3 <= found["submit_s"][2] <= found["first_s"][2] <= found["last_s"][2]
            about = await asyncio.to_thread(
                gpu_gateway.about, plan, 4, server.url.removeprefix("http://"), "mock"
            )
            assert (about["max_num_seqs"], about["block_size"]) == (4, 16)
            assert about["num_gpu_blocks"] == lw.timing(TIMING).num_gpu_blocks
            rows["output_tokens"] = rows["output_tokens"] * 0 + 10**6  # more than it may be
            with pytest.raises((InputError, BaseExceptionGroup)):
                await gpu_gateway.send(server.url, rows)

    asyncio.run(run())


def test_what_a_burst_sustains_is_counted_while_all_seats_are_taken() -> None:
    # five rounds of two answers of ten tokens, a second each
    rows = {
        "first_s": [float(k // 2) for k in range(10)], "output_tokens": [10] * 10,
        "last_s": [float(k // 2 + 1) for k in range(10)],
    }  # fmt: skip
    assert gpu_gateway.sustained(rows, 2) == pytest.approx(20.0)


def test_results_are_set_beside_the_simulator_and_envoy_s_own_apart(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured is here what the simulator says, so that both agree."""
    plan = gpu_gateway.Plan.read(data)
    requests = np.array(json.loads((data / REQUESTS).read_text()))
    about = {"gpu": "none", "num_gpu_blocks": 2000, "block_size": 16,
             "max_num_batched_tokens": 2048, "async_scheduling": True}  # fmt: skip
    session = {"replicas": [about | {"max_num_seqs": n} for n in plan.seats], "date": "today",
               "tokens_per_s": [1.0, 1.0]}  # fmt: skip
    nodes = gpu_gateway.gpu_routers_compare.nodes({"seats": plan.seats}, session, [TIMING])
    runs = []
    for router in ("round-robin", "jsew", "envoy:round_robin"):
        rows = gpu_gateway.drawn(requests, 40.0, plan.seconds, 0)
        asked = {name: values.tolist() for name, values in rows.items()}
        spec = router.removeprefix("envoy:").replace("_", "-")
        one = {"seed": 0, "load": 0.9, "router": spec, "session": 0, "requests": asked}
        found = gpu_gateway.gpu_routers_compare.simulated(one, nodes, {"report_s": 0.1}, data)
        asked |= {"replica": found["replica"].tolist(), "last_s": found["finish_s"].tolist(),
                  "first_s": found["first_token_s"].tolist()}  # fmt: skip
        runs.append({**one, "router": router})
    results = {"plan": {"seats": [4, 1], "report_s": 0.1, "timing": TIMING}, "capacity": 44.0,
               "sessions": [session], "runs": runs}  # fmt: skip
    (tmp_path / RESULTS).write_text(json.dumps(results))
    gpu_gateway.main(["compare", str(tmp_path / RESULTS), "--timing", TIMING, "--data", str(data)])
    said = capsys.readouterr().out
    assert "swapped pairs: none" in said and "+0.000" in said
    (alone,) = [line for line in said.splitlines() if line.startswith("envoy:round_robin")]
    assert "measured alone, mean" in alone
