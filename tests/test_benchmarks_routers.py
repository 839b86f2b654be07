"""The routers' measurement: its analysis against the simulator itself, and the harness whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import gpu_routers, gpu_routers_compare
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.load import load_router

TIMING = "h200/llama-3.1-8b"


def recorded(routers: tuple[str, ...], seeds: int = 2) -> dict[str, Any]:
    """Results as ``run`` writes them, of a machine that is the simulator, but 3 ms slower."""
    plan = gpu_routers.Plan(routers=routers, seats=(16, 4), loads=(0.9,), seconds=10.0)
    about = {"gpu": "none", "max_num_seqs": 0, "num_gpu_blocks": 2000, "block_size": 16,
             "max_num_batched_tokens": 2048, "async_scheduling": False}  # fmt: skip
    session = {"replicas": [about | {"max_num_seqs": n} for n in plan.seats], "date": "today",
               "tokens_per_s": [1.0, 1.0]}  # fmt: skip
    draws = np.random.default_rng(0)
    lengths = np.stack([draws.integers(20, 400, 900), draws.integers(5, 200, 900)], axis=1)
    lengths = np.column_stack([lengths, lengths[:, 1] * 1.0])
    nodes = gpu_routers_compare.nodes({"seats": plan.seats}, session, [TIMING])
    runs = []
    for seed in range(seeds):
        rows = gpu_routers.drawn(lengths, 30.0, plan.seconds, seed)
        for router in routers:
            asked: dict[str, Any] = {name: values.tolist() for name, values in rows.items()}
            one: dict[str, Any] = {"seed": seed, "router": router, "requests": asked}
            found = gpu_routers_compare.simulated(
                one, nodes, {"report_s": plan.report_s}, Path("nowhere")
            )
            asked["replica"] = found["replica"].tolist()
            asked["submit_s"] = asked["arrival_s"]
            asked["first_s"] = (found["first_token_s"] + 0.003).tolist()
            asked["last_s"] = (found["finish_s"] + 0.003).tolist()
            runs.append(one | {"load": 0.9, "session": 0})
    described = {"seats": list(plan.seats), "report_s": plan.report_s}
    return {"plan": described, "sessions": [session], "capacity": 33.0, "runs": runs}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return recorded(("round-robin", "jsq", "least-tokens"))


def test_what_was_recorded_is_found_again(results: dict[str, Any]) -> None:
    runs = gpu_routers_compare.table(results, [TIMING], Path("nowhere"))
    assert len(runs) == 6
    apart = runs[["mean measured", "TTFT measured"]].to_numpy() - 0.003
    np.testing.assert_allclose(apart, runs[["mean simulated", "TTFT simulated"]].to_numpy())
    assert (runs["share measured"] == runs["share simulated"]).all()
    one = results["runs"][1]["requests"]
    e2e = pd.Series(one["last_s"]) - pd.Series(one["arrival_s"])
    assert runs["P99 measured"][1] == pytest.approx(e2e.quantile(0.99))


def test_the_summary_pairs_by_seed_and_leaves_out_seeds_that_lack_a_router(
    results: dict[str, Any],
) -> None:
    found = gpu_routers_compare.summary(
        gpu_routers_compare.table(results, [TIMING], Path("nowhere"))
    ).set_index("router")
    assert found.loc["round-robin", "ratio measured"] == 1
    assert found.loc["jsq", "ratio measured"] < 1
    assert (found["seeds"] == 2).all()
    assert found["apart"].abs().max() < 0.05
    part = {**results, "runs": results["runs"][:-1]}  # the second seed lacks its last router
    less = gpu_routers_compare.summary(gpu_routers_compare.table(part, [TIMING], Path("nowhere")))
    assert (less["seeds"] == 1).all()
    text = gpu_routers_compare.markdown(less)
    assert text.splitlines()[2].split(" | ")[1] in ("jsq", "least-tokens")


def test_pairs_that_swap_are_named_and_near_ones_are_not() -> None:
    found = pd.DataFrame({
        "load": 1.0, "router": ["a", "b", "c"],
        "ratio measured": [0.5, 0.7, 0.505], "ratio simulated": [0.7, 0.5, 0.69],
    })  # fmt: skip
    assert gpu_routers_compare.same_order(found) == {1.0: ["a / b", "b / c"]}


def test_arrivals_are_a_poisson_process_of_the_wanted_rate() -> None:
    rows = gpu_routers.drawn(np.tile([[5, 6, 6.0]], (50, 1)), 40.0, 100.0, 1)
    gaps = np.diff(rows["arrival_s"])
    assert len(rows["arrival_s"]) == 4000
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)


def test_the_whole_harness_serves_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(load_router("least-tokens"), tmp_path / "mine")
    data, out = tmp_path / "data", tmp_path / "out"
    given = ["prepare", str(data), "--seconds", "0.5", "--seeds", "1", "--loads", "0.9",
             "--seats", "4,2", "--longest", "64,30", "--tau", "0.6",
             "--workload", "azure-code-2023",  # short answers: few of any run end at the cap
             "--routers", f"round-robin,{tmp_path / 'mine'}"]  # fmt: skip
    gpu_routers.main(given)
    command = ["run", str(data), str(out), "--engine", TIMING]
    gpu_routers.main([*command, "--minutes", "0"])
    found = json.loads((out / "results.json").read_text())
    assert found["runs"] == [] and found["capacity"] > 0
    assert "OUT OF TIME with 2 runs to go" in capsys.readouterr().out
    (out / "results.json").rename(tmp_path / "done.json")
    gpu_routers.main([*command, "--done", str(tmp_path / "done.json")])
    found = json.loads((out / "results.json").read_text())
    assert {one["router"] for one in found["runs"]} == {"round-robin", "mine"}
    assert len(found["sessions"]) == 2
    for one in found["runs"]:
        times = one["requests"]
        assert len(times["arrival_s"]) == round(0.45 * found["capacity"])
        assert (np.array(times["first_s"]) <= times["last_s"]).all()
        assert (np.array(times["submit_s"]) >= np.array(times["arrival_s"]) - 1e-3).all()
        assert times["predicted_tokens"] != times["output_tokens"]
        assert one["fallbacks"] == 0
    runs = gpu_routers_compare.table(found, [TIMING], data)
    assert set(runs["router"]) == {"round-robin", "mine"}


def test_an_engine_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    data = tmp_path / "data"
    gpu_routers.main(["prepare", str(data), "--seats", "2,2", "--longest", "8,8"])
    with pytest.raises(InputError, match=r"replica \d ended while starting:\n(.|\n)*nonsense"):
        gpu_routers.main(["run", str(data), str(tmp_path / "out"), "--engine", "nonsense"])


def test_a_router_that_reads_what_no_replica_reports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LengthwiseError, match="cached_tokens"):
        gpu_routers.main(["prepare", str(tmp_path), "--routers", "prefix-affinity"])


def test_a_plan_is_foretold_as_it_would_be_replayed(tmp_path: Path) -> None:
    gpu_routers.main(["prepare", str(tmp_path), "--seconds", "4", "--seeds", "2", "--loads", "1.0",
                      "--seats", "16,4", "--longest", "400,80",
                      "--routers", "round-robin,jsew"])  # fmt: skip
    found = gpu_routers_compare.foretold(tmp_path, [TIMING])
    assert len(found["runs"]) == 4
    assert found["sessions"][0]["tokens_per_s"][0] > 2 * found["sessions"][0]["tokens_per_s"][1]
    runs = gpu_routers_compare.table(found, [TIMING], tmp_path)
    np.testing.assert_allclose(runs["mean measured"], runs["mean simulated"], rtol=1e-9)
    table = gpu_routers_compare.summary(runs).set_index("router")
    assert table.loc["jsew", "ratio measured"] < 1
