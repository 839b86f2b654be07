"""One run: what it refuses, what it records, what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import lengthwise as lw
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval.output import check_writable, replaced_folder
from lengthwise.policies.srtf import SRTF
from lengthwise.policy import SchedulingPolicy, Score
from lengthwise.prediction import Prediction
from lengthwise.predictors.predict import predict

COLUMNS = [
    "request_id", "replica", "arrival_s", "scheduled_s", "first_token_s", "finish_s",
    "prompt_tokens", "output_tokens", "predicted_tokens", "preemptions", "recomputed_tokens",
    "cached_tokens",
    "retries",
    "lost_tokens",
    "ttft_s", "tpot_s", "e2e_s", "normalized_s",
]  # fmt: skip


@pytest.fixture(scope="module")
def workload() -> lw.Workload:
    return lw.Workload.preset("lmsys-chat", requests=120, rate=20.0, seed=1)


def test_requests_are_one_row_each(workload: lw.Workload) -> None:
    result = lw.simulate(workload, "srtf", "oracle")
    assert list(result.requests.columns) == COLUMNS
    assert len(result.requests) == len(workload)
    assert (result.requests["predicted_tokens"] == workload["output_tokens"]).all()
    assert (result.requests["scheduled_s"] >= result.requests["arrival_s"]).all()
    assert result.iterations is None
    assert result.config["backend"] in ("fast", "reference")


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_latencies_stand_beside_the_times_they_come_from(backend: Any) -> None:
    """A second an iteration, one seat: by hand."""
    slow = lw.LinearTiming(
        base_s=1.0, per_prefill_token_s=0.0, per_sequence_s=0.0, per_context_token_s=0.0
    )
    work = lw.Workload(
        {"arrival_s": [0.0, 0.5], "prompt_tokens": [4, 4], "output_tokens": [3, 1]}, name="two"
    )
    engine = lw.Engine(max_num_seqs=1, num_gpu_blocks=10)
    result = lw.simulate(work, engine=engine, timing=slow, backend=backend)
    rows = result.requests
    assert rows["ttft_s"].tolist() == [1.0, 3.5]  # the second waits for three iterations
    assert rows["tpot_s"].tolist()[0] == 1.0 and np.isnan(rows["tpot_s"][1])
    assert rows["e2e_s"].tolist() == [3.0, 3.5]
    assert rows["normalized_s"].tolist() == [1.0, 3.5]
    assert repr(result) == (
        "<Result: fcfs on two, 2 requests at 2/s, 1 x linear; mean latency 3.25 s, P99 3.5 s, "
        "TTFT P99 3.48 s, longest wait 2.5 s>"
    )
    page = result._repr_html_()
    assert "fcfs on two" in page and "<th>e2e, s</th><td>3.25</td>" in page


def test_a_policy_that_reads_predictions_needs_a_predictor(workload: lw.Workload) -> None:
    with pytest.raises(InputError, match=r"'sjf' reads predicted_tokens.*--predictor oracle"):
        lw.simulate(workload, "sjf")
    with pytest.raises(InputError, match=r"'least-tokens' reads predicted_tokens"):
        lw.simulate(workload, "fcfs", router="least-tokens", replicas=2)
    assert len(lw.simulate(workload, "fcfs").requests) == len(workload)


def test_a_predictor_that_reads_text_needs_text(workload: lw.Workload) -> None:
    class Reader:
        needs = frozenset({"prompt"})

        def predict(self, prompts: list[str]) -> None:
            raise AssertionError("nothing to read")

    with pytest.raises(InputError, match=r"reads the text of prompts, which lmsys-chat"):
        predict(Reader(), workload)  # type: ignore[arg-type]


def test_a_noisy_oracle_draws_anew_for_each_seed(workload: lw.Workload) -> None:
    spec = "noisy-oracle:sigma=0.5"

    def told(spec: str, seed: int) -> NDArray[np.float64]:
        found = predict(spec, workload, seed)
        assert found is not None
        return found.predicted_tokens

    first, again, other = (told(spec, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).mean() > 0.9
    assert np.array_equal(*(told(f"{spec},seed=7", seed) for seed in (0, 1)))


def test_a_policy_may_be_a_function(workload: lw.Workload) -> None:
    def longest_prompt_first(prompt_tokens: float) -> float:
        return -prompt_tokens

    result = lw.simulate(workload, longest_prompt_first)
    assert result.config["policy"] == "longest_prompt_first"


def test_names_are_told_the_nearest(workload: lw.Workload) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'srtf'"):
        lw.simulate(workload, "srft", "oracle")
    with pytest.raises(UnknownNameError, match="did you mean 'oracle'"):
        lw.simulate(workload, "sjf", "orcle")


def test_the_same_seed_writes_the_same_bytes(workload: lw.Workload, tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = lw.simulate(
            workload, "sjf", "noisy-oracle:tau=0.5", replicas=2, router="random", seed=5,
            log_iterations=True,
        )  # fmt: skip
        result.save(tmp_path / name, command="lengthwise simulate")
    for file in sorted(p.name for p in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["seed"] == 5
    assert config["command"] == "lengthwise simulate"
    assert config["versions"]["lengthwise"] == lw.__version__
    back = pd.read_parquet(tmp_path / "a" / "requests.parquet")
    pd.testing.assert_frame_equal(back, result.requests)


def test_summary_has_every_metric(workload: lw.Workload) -> None:
    tenants = np.array(["a", "b"], dtype=object)[np.arange(len(workload)) % 2]
    result = lw.simulate(workload.replace(tenant=tenants), "fcfs", log_iterations=True)
    found = result.summary({"ttft": 1.0})
    for name in (
        "ttft_p99_s", "tpot_p90_s", "itl_p99_s", "e2e_mean_s", "normalized_latency_mean_s",
        "wait_max_s", "slowdown_p95", "jain_index", "throughput_requests_per_s",
        "throughput_tokens_per_s", "goodput_requests_per_s", "slo_attainment", "preemptions",
        "recomputed_tokens", "kv_utilization_mean", "service_gap_max",
    ):  # fmt: skip
        assert name in found
    assert 0 < found["kv_utilization_mean"] <= found["kv_utilization_max"] <= 1
    assert found["slowdown_p50"] >= 1 - 1e-9


def test_folders_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replaced_folder(target) as fresh:
        (fresh / "config.json").write_text("{}")
        (fresh / "old").write_text("old")
    with pytest.raises(RuntimeError), replaced_folder(target) as fresh:
        (fresh / "new").write_text("new")
        raise RuntimeError("half way")
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "old"]
    with replaced_folder(target) as fresh:
        (fresh / "config.json").write_text("{}")
    assert [p.name for p in target.iterdir()] == ["config.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing temporary is left


def test_folders_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="it is a file"):
        check_writable(tmp_path / "thesis.tex")
    with pytest.raises(InputError, match="can't write results"):
        check_writable(tmp_path / "thesis.tex" / "below")


def frozen(predicted_tokens: Any, generated_tokens: Any) -> Any:
    return predicted_tokens - generated_tokens


class TwoLengths:
    """Foretells 5 or 400 tokens, whatever it is asked."""

    needs = frozenset[str]()

    def predict(self, prompts: Any, **given: Any) -> Prediction:
        return Prediction.distribution([[5.0, 400.0]] * len(given["prompt_tokens"]), [0.4, 0.6])


def test_a_predictor_s_distribution_reaches_the_engine(workload: lw.Workload) -> None:
    """Its curves are what ``srtf`` orders by, not its mean less what was generated."""
    refreshed, plain = (
        lw.simulate(workload, policy, TwoLengths(), engine=lw.Engine(max_num_seqs=2))  # type: ignore[arg-type]
        for policy in ("srtf", SchedulingPolicy(Score.from_function(frozen), SRTF.preemption))
    )
    assert refreshed.config["backend"] == "fast"
    assert (refreshed.records.finish_ps != plain.records.finish_ps).any()


def test_limits_of_clients_bind_a_predictor(workload: lw.Workload) -> None:
    limited = workload.replace(max_tokens=workload["output_tokens"] + 3)
    found = predict("noisy-oracle:sigma=2.0", limited)
    assert found is not None
    assert (found.predicted_tokens <= limited["max_tokens"]).all()
    result = lw.simulate(limited, "sjf", "noisy-oracle:sigma=2.0")
    assert (result.records.predicted_tokens <= limited["max_tokens"]).all()


def test_a_result_knows_its_engine_and_timing_where_nodes_are_alike() -> None:
    workload = lw.Workload.preset("azure-conv-2023", requests=5, rate=1.0)
    alike = lw.simulate(workload, engine=lw.Engine(max_num_seqs=7), replicas=2)
    assert alike.engine.max_num_seqs == 7 and alike.timing.name == "h200/llama-3.1-8b"
    differ = lw.simulate(workload, nodes="h200/llama-3.1-8b,h200/llama-3.2-3b")
    with pytest.raises(InputError, match=r"nodes differ: ask system.nodes\[i\]"):
        _ = differ.engine
