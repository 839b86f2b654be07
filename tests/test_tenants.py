"""Tenants: who was served how much, fair policies' bounds, and metrics by tenant and by class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lengthwise as lw
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.eval import metrics
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.plugins.vllm.driver import VALUES
from lengthwise.serving import Engine, Node, System
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.system import Stops
from lengthwise.serving.timing import LinearTiming
from lengthwise.serving.workload import load_workload
from lengthwise.workload import Workload

TICK = LinearTiming(base_s=1.0)


def two(count: int, prompt: Any, output: Any, **columns: Any) -> Workload:
    """Requests of a and b in turn, all there at once."""
    return Workload({
        "arrival_s": np.zeros(count), "prompt_tokens": np.broadcast_to(prompt, count).copy(),
        "output_tokens": np.broadcast_to(output, count).copy(),
        "tenant": np.array(["a", "b"] * (count // 2), object), **columns,
    })  # fmt: skip


def services(
    workload: Workload, policy: str, engine: Engine, predictions: Any = None
) -> list[tuple[set[str], list[float]]]:
    """Before each admission: the tenants who wait, and what each was served."""
    node = Node(engine, TICK, load_policy(policy))
    made = ReferenceRun(workload, System((node,), load_router("jsq")), predictions)
    found = []
    while made.advance(Stops(admit=True)).kind != "done":
        (replica,) = made.nodes
        waiting = {str(workload["tenant"][r.id]) for r in replica.here if not r.in_batch}
        assert replica.tenants is not None
        found.append((waiting, replica.tenants.service(replica.here)))
    return found


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([16, 64, 400]))
def test_the_gap_between_tenants_that_wait_is_bounded_as_vtc_says(
    seed: int, seats: int, budget: int
) -> None:
    """VTC, theorem 4.4: no more than twice the larger of a prompt and of what a full batch is worth
    (two for each of its tokens); an iteration admits at most its budget before ours looks again.
    """
    rng = np.random.default_rng(seed)
    count = 60
    workload = two(count, rng.integers(1, 80, count), rng.integers(1, 50, count))
    engine = Engine(max_num_seqs=seats, max_num_batched_tokens=max(budget, seats),
                    num_gpu_blocks=80, block_size=8)  # fmt: skip
    batch = min(79 * 8, seats * 130)
    bound = 2 * max(80, 2 * batch) + budget
    seen = services(workload, "vtc", engine)
    gaps = [abs(a - b) for waiting, (a, b) in seen if waiting == {"a", "b"}]
    assert gaps and max(gaps) <= bound


def test_a_tenant_that_sends_more_gets_no_more_while_both_wait() -> None:
    """Two thirds of the requests are b's: first come first served gives it two thirds."""
    workload = lw.Workload.preset("overload", requests=600, seed=1)
    engine = Engine(max_num_seqs=8, num_gpu_blocks=400)
    slow = LinearTiming(base_s=0.02)
    ratio = {}
    for policy in ("fcfs", "vtc"):
        result = lw.simulate(workload, policy=policy, engine=engine, timing=slow)
        done = result.records.finish_ps / 1e12 < 120
        served = [int((done & (workload["tenant"] == f"client-{k}")).sum()) for k in (0, 1)]
        ratio[policy] = served[1] / served[0]
    assert ratio["fcfs"] == pytest.approx(2, rel=0.15)
    assert ratio["vtc"] == pytest.approx(1, rel=0.15)


def test_weights_share_as_they_say() -> None:
    workload = two(200, 4, 10, tenant_weight=np.array([1.0, 3.0] * 100))
    seen = [s for waiting, s in services(workload, "vtc", Engine(max_num_seqs=2,
            num_gpu_blocks=400)) if waiting == {"a", "b"}]  # fmt: skip
    a, b = seen[-1]
    assert a == pytest.approx(b, rel=0.1)  # what each got over its weight
    ends = lw.simulate(
        workload, policy="vtc", engine=Engine(max_num_seqs=2, num_gpu_blocks=400), timing=TICK
    ).records.finish_ps
    early = workload["tenant"][np.argsort(ends, kind="stable")[:80]]
    assert (early == "b").sum() / (early == "a").sum() == pytest.approx(3, rel=0.15)


def test_a_counter_by_hand() -> None:
    """Four requests of 3 + 2 tokens on one seat: a prompt counts once, a generated token twice.

    b comes at 3.5 s, when a has had 7 of its first and 3 + 2 of its second, and begins there.
    """
    workload = Workload({
        "arrival_s": [0.0, 0.0, 0.0, 3.5], "prompt_tokens": np.full(4, 3),
        "output_tokens": np.full(4, 2), "tenant": ["a", "a", "a", "b"],
    })  # fmt: skip
    seen = services(workload, "vtc", Engine(max_num_seqs=1, num_gpu_blocks=50))
    assert [s for _, s in seen] == [[0.0, 0.0], [7.0, 0.0], [14.0, 12.0], [14.0, 19.0]]


def test_within_a_tenant_fair_queueing_is_shortest_first() -> None:
    rng = np.random.default_rng(3)
    workload = two(40, rng.integers(1, 50, 40), rng.integers(1, 50, 40)).replace(
        tenant=np.full(40, "a", object)
    )
    engine = Engine(max_num_seqs=3, num_gpu_blocks=400)
    fair, short = (
        lw.simulate(workload, policy=p, predictor="oracle", engine=engine, timing=TICK).records
        for p in ("wfq", "work:b=0.5")
    )
    assert fair.finish_ps.tolist() == short.finish_ps.tolist()


def test_dlpm_lies_between_vtc_and_longest_prefix() -> None:
    service, cached = np.array([0.0, 90.0, 5000.0]), np.array([16, 64, 320])
    order = {
        spec: np.argsort(load_policy(spec).score(service, cached)).tolist()
        for spec in ("dlpm:quantum=1", "dlpm:quantum=100", "dlpm:quantum=10000")
    }
    assert order == {
        "dlpm:quantum=1": [0, 1, 2], "dlpm:quantum=100": [1, 0, 2],
        "dlpm:quantum=10000": [2, 1, 0],
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_both_engines_count_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 80
    whose = rng.integers(0, 3, n)
    columns: dict[str, Any] = {
        "arrival_s": np.cumsum(rng.exponential(0.05, n)), "prompt_tokens": rng.integers(1, 60, n),
        "output_tokens": rng.integers(1, 60, n), "tenant": [str(k) for k in whose],
    }  # fmt: skip
    if seed % 2:
        columns["tenant_weight"] = np.array([1.0, 2.5, 0.3])[whose]
    engine = Engine(
        max_num_seqs=int(rng.integers(1, 8)), num_gpu_blocks=int(rng.integers(12, 60)),
        max_num_batched_tokens=int(rng.integers(16, 128)), async_scheduling=seed % 3 == 0,
    )  # fmt: skip
    policy = (
        "vtc", "wfq", "vtc+preempt:price=0", "dlpm:quantum=50", "lcf+preempt:price=0",
        "plas:quantum=20,levels=4+preempt:price=0",
    )[seed % 6]  # fmt: skip
    one, other = (
        lw.simulate(
            Workload(columns), policy=policy, predictor="oracle", engine=engine,
            timing=LinearTiming(0.01, 1e-4, 1e-4), backend=backend, replicas=2, router="jsq",
        ).records
        for backend in ("reference", "fast")
    )  # fmt: skip
    assert one.finish_ps.tolist() == other.finish_ps.tolist()
    assert one.preemptions.tolist() == other.preemptions.tolist()


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_who_comes_back_saved_up_for_lcf_and_not_for_vtc(backend: Any) -> None:
    """a was served 7 tokens a request, b comes at 3.5 s: its three go first for ``lcf``, for
    ``vtc`` it begins where a is, and they take turns."""
    workload = Workload({
        "arrival_s": [0.0, 0.0, 0.0, 0.0, 3.5, 3.5], "prompt_tokens": np.full(6, 3),
        "output_tokens": np.full(6, 2), "tenant": [*"aaaa", *"bb"],
    })  # fmt: skip
    ends = {
        policy: np.argsort(lw.simulate(
            workload, policy=policy, timing=TICK, backend=backend,
            engine=Engine(max_num_seqs=1, num_gpu_blocks=50),
        ).records.finish_ps).tolist()
        for policy in ("lcf", "vtc")
    }  # fmt: skip
    assert ends == {"lcf": [0, 1, 4, 5, 2, 3], "vtc": [0, 1, 4, 2, 5, 3]}


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_calls_of_programs_by_levels_of_what_they_attained(backend: Any) -> None:
    """Calls are worth 7: with levels up to 8, 24, ... those of a program that had one are alike."""
    workload = Workload({
        "arrival_s": np.zeros(7), "prompt_tokens": np.full(7, 3),
        "output_tokens": np.full(7, 2), "tenant": [*"aaaabbc"],
    })  # fmt: skip

    def order(policy: str) -> list[int]:
        found = lw.simulate(
            workload,
            policy=policy,
            timing=TICK,
            backend=backend,
            engine=Engine(max_num_seqs=1, num_gpu_blocks=50),
        ).records.finish_ps
        return [int(place) for place in np.argsort(found)]

    # a's second goes on from 7, still in the first level; then b's two and c's, and a's others
    assert order("plas:quantum=8,levels=3") == [0, 1, 4, 5, 6, 2, 3]
    assert order("plas:quantum=1000") == list(range(7))  # one level: by arrival
    assert order("lcf") == [0, 4, 6, 1, 5, 2, 3]


def test_what_is_missing_or_wrong_is_told() -> None:
    plain = Workload({"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1]})
    for backend in ("reference", "fast"):
        with pytest.raises(InputError, match="reads tenant_service, and the workload has no colum"):
            lw.simulate(plain, policy="vtc", timing=TICK, engine=Engine(num_gpu_blocks=9),
                        backend=backend)  # fmt: skip
    with pytest.raises(InputError, match="there is no column 'tenant'"):
        plain.replace(tenant_weight=np.ones(1))
    with pytest.raises(InputError, match="row 1: tenant_weight is 0; it must be above 0"):
        two(4, 1, 1, tenant_weight=np.array([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="row 2: tenant_weight is 2, and 1 in row 0 of the same"):
        two(4, 1, 1, tenant_weight=np.array([1.0, 1.0, 2.0, 1.0]))
    said = VALUES.lacks(load_policy("vtc").score.features, "vtc")
    assert said is not None and said.startswith("vtc reads tenant_service (of a tenant)")


def test_metrics_of_tenants_and_deadlines_by_hand() -> None:
    """One seat, answers of 1, 2 and 3 s: done at 1, 3 and 6 s."""
    workload = Workload({
        "arrival_s": np.zeros(3), "prompt_tokens": np.ones(3, int), "output_tokens": [1, 2, 3],
        "tenant": ["a", "b", "b"], "deadline_s": [1.0, 2.5, np.inf], "task": ["x", "y", "y"],
    })  # fmt: skip
    result = lw.simulate(workload, engine=Engine(max_num_seqs=1, num_gpu_blocks=9), timing=TICK)
    found = result.summary(slo={"e2e": 5.0, "y.ttft": 1.5, "x.tpot": 9.0})
    assert found["deadline_attainment"] == pytest.approx(2 / 3)
    assert found["deadline_goodput_requests_per_s"] == pytest.approx(2 / 6)
    assert found["lateness_max_s"] == pytest.approx(0.5)
    # slowdowns of 1, 3 / 2 and 6 / 3
    assert found["tenant_slowdown_max"] == pytest.approx(1.75)
    assert found["tenant_jain_index"] == pytest.approx((1 + 1.75) ** 2 / (2 * (1 + 1.75**2)))
    assert found["slo_attainment"] == pytest.approx(1 / 3)
    assert found["slo_attainment_y"] == 0 and found["slo_attainment_x"] == 1
    with pytest.raises(UnknownNameError, match="unknown task 'z' of an SLO"):
        result.summary(slo={"z.ttft": 1.0})
    assert metrics.parse_slo("chat.ttft=1,e2e=2", ("ttft", "e2e")) == {"chat.ttft": 1, "e2e": 2}
    with pytest.raises(UnknownNameError, match="did you mean 'ttft'"):
        metrics.parse_slo("chat.tft=1", ("ttft", "e2e"))


def test_a_gap_is_over_the_weights() -> None:
    workload = two(60, 4, 10, tenant_weight=np.array([1.0, 3.0] * 30))
    records = lw.simulate(
        workload, policy="vtc", engine=Engine(max_num_seqs=2, num_gpu_blocks=400), timing=TICK
    ).records
    fair = metrics.service_gap(records, workload["tenant"], shares=workload["tenant_weight"])
    plain = metrics.service_gap(records, workload["tenant"])
    assert fair["service_gap_mean"] < plain["service_gap_mean"] / 3


def test_deadlines_by_task_and_for_all(tmp_path: Any) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,task\n0,1,1,chat\n1,1,1,batch\n2,1,1,other\n"
    )
    made = load_workload(str(path), deadlines={"chat": 2.0, "batch": 60.0})
    assert made["deadline_s"].tolist() == [2.0, 61.0, np.inf]
    made = load_workload(str(path), deadlines={"chat": 2.0, "": 30.0})
    assert made["deadline_s"].tolist() == [2.0, 31.0, 32.0]
    assert load_workload("sharegpt", requests=3, deadlines={"": 5.0})["deadline_s"][0] == 5.0
    with pytest.raises(UnknownNameError, match="did you mean 'chat'"):
        load_workload(str(path), deadlines={"chatt": 2.0})
    with pytest.raises(InputError, match="positive number of seconds, not 0"):
        load_workload(str(path), deadlines={"": 0.0})


def test_the_preset_is_two_clients_that_send_evenly() -> None:
    made = lw.Workload.preset("overload", requests=450, seed=3)
    for name, rate in (("client-0", 1.5), ("client-1", 3.0)):
        gaps = np.diff(made["arrival_s"][made["tenant"] == name])
        assert gaps == pytest.approx(1 / rate)
    assert set(made["prompt_tokens"]) == set(made["output_tokens"]) == {256}
    assert made.rate == pytest.approx(4.5, rel=0.01)
