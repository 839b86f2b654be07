"""Calibration: factors that are known are found again, and real runs are told better with them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lengthwise as lw
from benchmarks import calibration, fidelity
from lengthwise.errors import InputError
from lengthwise.eval.calibrate import Calibration, calibrate, figures, met
from lengthwise.eval.measure_server import measure_server
from lengthwise.eval.measured import Measured, read_measured
from lengthwise.eval.mock import fleet
from lengthwise.eval.setting import Setting
from lengthwise.serving.mock.server import Serving
from lengthwise.serving.timing.load import shipped
from lengthwise.workload import Workload
from tests.test_cli import Run

PROFILE = "h200/llama-3.1-8b"
ENGINE = lw.Engine(max_num_seqs=64, async_scheduling=True, enable_prefix_caching=True)


def served(factors: str, rate: float, requests: int = 300) -> Measured:
    """A run of the simulator as somebody measured it."""
    workload = Workload.preset("azure-conv-2023", requests=requests, rate=rate, seed=3)
    table = lw.simulate(workload, "fcfs", engine=ENGINE, timing=f"{PROFILE}:{factors}").requests
    arrival = table["arrival_s"].to_numpy()
    first, last = (table[name].to_numpy() - arrival for name in ("first_token_s", "finish_s"))
    return Measured(factors, workload, first, last)


def test_factors_that_are_known_are_found_again() -> None:
    run = served("gpu=1.06,cpu=1.8", 30.0)
    found = calibrate([run], PROFILE, ENGINE)
    assert found.gpu.told and found.cpu.told
    assert found.gpu.value == pytest.approx(1.06, abs=0.05)
    assert found.cpu.value == pytest.approx(1.8, rel=0.2)
    assert found.gpu.low <= 1.06 <= found.gpu.high and found.cpu.low <= 1.8 <= found.cpu.high
    assert found.timing == f"{PROFILE}:gpu={found.gpu.value:g},cpu={found.cpu.value:g}"
    assert found.factors == (found.gpu.value, found.cpu.value)
    assert (found.second_half.figures, found.second_half.calibrated) == (12, 12)
    assert found.second_half.plain < 8
    # the rows are the run beside the profile as it is, and beside the calibrated one
    by_name = {row["figure"]: row for row in found.rows}
    plain = served("gpu=1,cpu=1", 30.0).last_s.mean()
    assert by_name["e2e_mean"]["measured_s"] == pytest.approx(run.last_s.mean())
    assert by_name["e2e_mean"]["plain"] == pytest.approx(
        plain / by_name["e2e_mean"]["measured_s"] - 1
    )
    assert max(abs(row["calibrated"]) for row in found.rows) < 0.1


def test_what_a_run_hardly_tells_stays_near_the_usual() -> None:
    found = calibrate([served("gpu=0.96", 8.0, 150)], PROFILE, ENGINE)
    slow = calibrate([served("cpu=4", 8.0, 150)], PROFILE, ENGINE)  # the GPU waits for it
    assert not slow.gpu.told and slow.gpu.value == pytest.approx(1.0, abs=0.03)
    assert slow.cpu.value == pytest.approx(4.0, rel=0.05)
    assert found.gpu.value == pytest.approx(0.96, abs=0.02)
    assert not found.cpu.told and found.cpu.low < 1.0 < found.cpu.high
    assert any("these runs hardly tell the CPU's factor" in notice for notice in found.notices)


def test_a_profile_that_needs_no_factors_is_left_alone() -> None:
    found = calibrate([served("gpu=1", 20.0, 150)], PROFILE, ENGINE)
    assert (found.timing, found.factors) == (PROFILE, (1.0, 1.0))
    assert found.second_half.plain == 12
    assert found.notices[-1].startswith("the profile as it is does as well on the second half (12 ")
    assert all(abs(row["plain"]) < 1e-6 and row["calibrated"] == row["plain"] for row in found.rows)


def test_without_first_tokens_the_ends_alone_are_fitted() -> None:
    run = served("gpu=1.05", 20.0, 200)
    found = calibrate([replace(run, first_s=None)], PROFILE, ENGINE)
    assert {row["figure"].partition("_")[0] for row in found.rows} == {"e2e"}
    assert found.second_half.figures == 4
    assert found.gpu.low <= 1.05 <= found.gpu.high and found.gpu.value > 1.01


def test_real_runs_calibrate_a_profile_of_another_gpu_for_other_runs() -> None:
    """vLLM's own runs on an H200, told by a profile whose GPU is 5% slower."""
    base = calibration.spoiled(shipped(PROFILE), 1.05, 1.0)
    runs = [calibration.measured(name) for name in ("b-conv-gamma", "b-burst")]
    found = calibrate(runs, base, fidelity.engine("b-burst"))
    assert found.gpu.low < 1 / 1.05 < found.gpu.high
    fitted = base.with_factors(gpu=found.factors[0], cpu=found.factors[1])
    # other arrivals, lengths, loads and seats
    others = ("b-code-bursty", "a-conv-bursty", "c-burst", "r-hi-fcfs")
    plain, calibrated = (
        sum(calibration.figures_met(name, timing) for name in others) for timing in (base, fitted)
    )
    assert calibrated >= plain + 8, (plain, calibrated)


def test_figures_and_what_is_called_met() -> None:
    first, last = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.1, 1.2, 2.3, 3.4])
    found = figures(first, last, np.array([1, 11, 11, 11]))
    assert found["ttft"][0] == pytest.approx(0.25)
    assert found["tpot"].tolist() == pytest.approx([0.2, 0.2, 0.28, 0.298])  # of three requests
    np.testing.assert_allclose(found["e2e"][1:], np.quantile(last, [0.5, 0.9, 0.99]))
    assert set(figures(None, last, np.ones(4, np.int64))) == {"e2e"}
    assert met(np.array([1.05, 0.949, 1.051, 0.9])).tolist() == [True, False, False, True]


def bench(n: int = 60, **changed: object) -> dict[str, object]:
    """A result of ``vllm bench serve --save-result --save-detailed``, in the later order."""
    return {
        "date": "20261127-120000", "completed": n, "request_rate": 10.0,
        "start_times": [1000.0 + 0.1 * (n - i) for i in range(n)],
        "input_lens": [100 + i for i in range(n)], "output_lens": [3] * n,
        "ttfts": [0.05] * n, "itls": [[0.01, 0.02]] * n, "errors": [""] * n, **changed,
    }  # fmt: skip


def test_what_vllm_bench_serve_wrote_is_read(tmp_path: Path) -> None:
    said = bench()
    said["output_lens"] = [3] * 58 + [0, 3]  # one failed
    said["ttfts"] = [0.05] * 57 + [0.06, 0.0, 0.05]
    said["errors"] = ["broken off"] + [""] * 59  # after its first tokens
    (tmp_path / "bench.json").write_text(json.dumps(said))
    run = read_measured(tmp_path / "bench.json")
    assert len(run) == 58 and run.workload["prompt_tokens"].min() == 101
    assert run.workload["arrival_s"][:2].tolist() == pytest.approx([0.0, 0.2])  # one is left out
    assert run.workload["prompt_tokens"][:2].tolist() == [159, 157]
    assert run.first_s is not None and run.first_s[1] == 0.06
    assert run.last_s[1] == pytest.approx(0.09)
    assert run.notices == (
        "bench.json: 2 of 60 requests are left out: not answered, or without a time",
    )


def test_tables_and_records_are_read(tmp_path: Path) -> None:
    n = 60
    table = pd.DataFrame(
        {
            "arrival_s": 1e9 + np.arange(n), "finish_s": 1e9 + np.arange(n) + 2.5,
            "prompt_tokens": 7, "output_tokens": 5, "finish_reason": ["abort"] + ["stop"] * 59,
        }
    )  # fmt: skip
    (tmp_path / "log").mkdir()
    table.to_parquet(tmp_path / "log" / "part-1.parquet")
    run = read_measured(tmp_path / "log")  # as a plugin's record has it
    assert len(run) == 59 and run.first_s is None
    assert run.last_s.tolist() == pytest.approx([2.5] * 59)
    table.assign(first_token_s=table["arrival_s"] + 0.5).to_csv(tmp_path / "a.csv")
    run = read_measured(tmp_path / "a.csv")
    assert run.first_s is not None and run.first_s.tolist() == pytest.approx([0.5] * 59)
    table.drop(columns="finish_s").assign(e2e_s=3.0, ttft_s=1.0).to_csv(tmp_path / "b.csv")
    run = read_measured(tmp_path / "b.csv")
    assert run.first_s is not None and (run.first_s[0], run.last_s[0]) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"start_times": None}, "has no start_times: calibrate reads what `vllm bench serve"),
        ({"ttfts": [0.1]}, "ttfts has 1 entries, for 60 requests"),
        ({"output_lens": None}, "a benchmark's summary, without its requests"),
        ({"itls": [["x"]] * 60}, "times or lengths are no numbers"),
        ({"output_lens": [0] * 60}, "holds 0 answered requests; 50 are the fewest"),
    ],
)
def test_what_can_t_be_read_is_one_line(
    changed: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(bench(**changed)))
    with pytest.raises(InputError, match=said) as caught:
        read_measured(tmp_path / "bench.json")
    assert "\n" not in str(caught.value)


def test_tables_without_a_time_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    with pytest.raises(InputError, match="a column finish_s or e2e_s, seconds"):
        read_measured(tmp_path / "t.csv")
    (tmp_path / "u.csv").write_text("arrival_s,output_tokens,e2e_s\n0,1,1\n")
    with pytest.raises(InputError, match="has no column prompt_tokens; it has arrival_s, output_t"):
        read_measured(tmp_path / "u.csv")


def test_a_server_is_measured_as_its_clients_see_it() -> None:
    workload = Workload(
        {"arrival_s": [0.0, 0.1, 0.2], "prompt_tokens": [30, 20, 10], "output_tokens": [1, 2, 40]}
    )
    (server,) = fleet(Setting(ENGINE), "fcfs", None, Serving(port=0))

    async def measured(model: str | None = None, path: str = "") -> Measured:
        async with server:
            return await measure_server(server.url + path, model, workload)

    run = asyncio.run(measured())
    assert run.first_s is not None
    np.testing.assert_allclose(run.workload["arrival_s"], [0.0, 0.1, 0.2], atol=0.09)
    assert (run.first_s > 0).all() and run.last_s[0] == run.first_s[0]
    assert run.last_s[2] - run.first_s[2] > 39 * 0.004  # an iteration takes 5 ms
    with pytest.raises(InputError, match=r"answered 404: .*The model `other` does not exist"):
        asyncio.run(measured("other"))
    with pytest.raises(InputError, match="lists no model"):
        asyncio.run(measured(path="/nowhere"))


def test_the_command_says_the_timing_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = served("gpu=1.12", 20.0, 120)
    assert run.first_s is not None
    pd.DataFrame(
        {
            **{c: run.workload[c] for c in ("arrival_s", "prompt_tokens", "output_tokens")},
            "ttft_s": run.first_s, "e2e_s": run.last_s,
        }
    ).to_csv(tmp_path / "run.csv")  # fmt: skip
    options = "--like vllm-serve --max-num-seqs 64 --max-num-batched-tokens 2048"
    shown = Run(f"calibrate {tmp_path / 'run.csv'} {options}", capsys)
    assert shown.code == 0, shown.err
    assert shown.out.startswith(f"--timing {PROFILE}:gpu=1.")
    assert "figures of the second within 5% (P99: 10%)" in shown.out
    found = json.loads(Run(f"calibrate {tmp_path / 'run.csv'} {options} --json", capsys).out)
    assert found["timing"] == shown.out.split()[1]
    assert set(found) == set(Calibration.__dataclass_fields__) - {"rows"} | {"figures"}
    for wrong, said in (
        ("calibrate", "what to calibrate on? RESULT, or --live URL"),
        (f"calibrate {tmp_path / 'run.csv'} --timing roofline:h200/llama-3.1-8b",
         "calibrate takes a measured profile, not 'roofline:h200/llama-3.1-8b'"),
        (f"calibrate {tmp_path / 'run.csv'} --policy sjf", "policies that need no lengths"),
        ("calibrate --live http://127.0.0.1:9 --rate 1 --seconds 5", "5 requests; 100 are the few"),
    ):  # fmt: skip
        refused = Run(wrong, capsys)
        assert refused.code == 2 and said in refused.err
