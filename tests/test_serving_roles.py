"""Prefill and decode on nodes of their own: by hand, by what is conserved, and in both engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval.trace import phases
from lengthwise.features import get
from lengthwise.policies import load_policy, load_router
from lengthwise.policy import Admission, Preemption
from lengthwise.serving import Engine, Fail, Node, Slow, System, run
from lengthwise.serving.fast import run as kernel
from lengthwise.serving.reference.run import ReferenceRun
from lengthwise.serving.system import Stops
from lengthwise.serving.timing.linear import LinearTiming
from lengthwise.serving.transfer import KVTransfer
from lengthwise.workload import Workload
from tests.test_serving_kernel import differences, outcome, trial

PS = 10**12
FCFS, ROBIN = load_policy("fcfs"), load_router("round-robin")
# a prompt of p tokens takes 1 ms + p x 10 us, a token of one sequence 1 ms
PLAIN = LinearTiming(base_s=1e-3, per_prefill_token_s=1e-5)
ENGINE = Engine(max_num_seqs=8, num_gpu_blocks=1000, block_size=16)


def node(role: str, **options: Any) -> Node:
    return Node(dataclasses.replace(ENGINE, **options), PLAIN, FCFS, role)  # type: ignore[arg-type]


def jobs(*rows: tuple[float, int, int]) -> Workload:
    """Requests of (arrival_s, prompt_tokens, output_tokens)."""
    columns = zip(*rows, strict=True)
    names = ("arrival_s", "prompt_tokens", "output_tokens")
    return Workload({name: np.array(one) for name, one in zip(names, columns, strict=True)})


def apart(seed: int, *, guarded: bool = False, slow: bool = False) -> dict[str, Any]:
    """A random run with roles, from one of the suite's without; ``slow`` nodes slow down in it."""
    given, rng = trial(seed, unequal=seed % 2 == 0), np.random.default_rng([seed, 7])
    nodes = list(given["system"].nodes)
    while len(nodes) < 2 or (len(nodes) < 9 and rng.random() < 0.5):
        nodes.append(nodes[int(rng.integers(len(nodes)))])
    roles = ["prefill", str(rng.choice(["decode", "both"]))]
    roles += [str(rng.choice(["prefill", "decode", "decode", "both"])) for _ in nodes[2:]]
    rng.shuffle(roles)
    router = given["system"].routing
    system = System(
        tuple(_simple(one, role, guarded) for one, role in zip(nodes, roles, strict=True)),
        router if _told(router.score.features) else ROBIN,
        given["system"].metrics_interval_s,
        tuple(
            Slow(int(at), float(begin := round(rng.uniform(0, 2), 3)), float(begin + 0.3), 2.5)
            for at in range(len(nodes)) if slow and rng.random() < 0.15
        ),
        KVTransfer(
            float(rng.choice([0.001, 0.01, 0.5, np.inf])), float(rng.choice([0.0, 1e-3, 0.05])),
            int(rng.choice([0, 0, 10, 40, 1000])),
            None if rng.random() < 0.5 else load_router(str(rng.choice(["jsq", "random"]))),
            int(rng.choice([100, 1001, 131_072])),
        ),
    )  # fmt: skip
    return given | {"system": system}


def _told(names: tuple[str, ...]) -> bool:
    return all(get(name).of != "tenant" and name != "oldest_request_s" for name in names)


def _simple(given: Node, role: str, guarded: bool) -> Node:
    policy = dataclasses.replace(
        given.policy, preemption=Preemption(mode="none"), admission=Admission(),
        guard=given.policy.guard if guarded else None,
    )  # fmt: skip
    if not _told(policy.score.features):
        policy = FCFS
    engine = dataclasses.replace(given.engine, enable_prefix_caching=False, async_scheduling=False)
    return Node(engine, given.timing, policy, role)  # type: ignore[arg-type]


def check_conserved(given: dict[str, Any]) -> None:
    """A whole run, its books verified after every event, and what its transfers must satisfy."""
    system, workload = given["system"], given["workload"]
    made = ReferenceRun(workload, system, given["predictions"], seed=given["seed"], check=True)
    made.advance()
    records, apart = made.records(), made._apart
    assert apart is not None and records.moved is not None
    request, source, target, ready, start, end, size, decode = records.moved.T
    roles = np.array([one.role for one in system.nodes])
    assert (roles[source] == "prefill").all() and (roles[target] != "prefill").all()
    away = (workload["prompt_tokens"] >= apart.min_prompt) & (workload["output_tokens"] > 1)
    assert request.tolist() == np.flatnonzero(away).tolist()
    assert (ready <= start).all() and (start <= end).all() and (end <= decode).all()
    assert (ready == records.first_token_ps[request]).all()
    assert (decode < records.finish_ps[request]).all()
    assert (target == records.replica[request]).all()
    sizes = np.array([one.engine.block_size for one in system.nodes])[source]
    blocks = -(-workload["prompt_tokens"][request] // sizes)
    assert (size == blocks * np.array(apart.block_bytes)[source]).all()
    busy = blocks * np.array(apart.block_ps)[source]
    assert (end - start == busy + apart.latency_ps).all()
    for at in range(len(roles)):  # one transfer at a time on each link
        mine = (source == at) | (target == at)
        order = np.argsort(start[mine], kind="stable")
        begins, ends = start[mine][order], (start + busy)[mine][order]
        assert (np.maximum.accumulate(ends)[:-1] <= begins[1:]).all()
    for one in made.nodes:  # all blocks and seats came back
        assert one.kv.used == 0 and not one.running and not len(one.waiting) and not one.here
        assert one.pulled == 0 and one.outstanding == 0


@pytest.mark.parametrize("seed", range(11))
def test_blocks_seats_and_links_are_conserved(seed: int) -> None:
    check_conserved(apart(seed, guarded=True, slow=True))


def test_both_engines_agree_to_the_bit() -> None:
    tried = 0
    for seed in range(60):
        given = apart(seed)
        # one compilation of the fast engine serves all of those whose scores change
        if not any(one.policy.score.changes for one in given["system"].nodes):
            continue
        workload = given.pop("workload")
        assert kernel.supports(workload, given["system"]) is None
        slow = outcome(lambda w, **g: run(w, **g, backend="reference"), workload, given)
        fast = outcome(kernel.run, workload, given)
        assert type(slow) is type(fast), (seed, slow, fast)
        assert slow == fast if isinstance(slow, str) else not differences(slow, fast), seed
        tried += 1
        if tried == 8:
            break
    assert tried == 8


# By hand, in both engines

Runner = Callable[..., Any]


@pytest.fixture(params=["reference", "fast"])
def served(request: pytest.FixtureRequest) -> Runner:
    """Runs jobs on nodes: records."""

    def served(nodes: list[Node], transfer: KVTransfer, *rows: tuple[float, int, int]) -> Any:
        system = System(tuple(nodes), ROBIN, kv_transfer=transfer)
        return run(jobs(*rows), system, backend=request.param)

    return served


INSTANT = KVTransfer(float("inf"), kv_bytes_per_token=1)


def test_a_transfer_of_known_size_takes_the_time_by_hand(served: Runner) -> None:
    # 1,024 tokens are 64 blocks of 16 x 128 KiB: 134,217,728 bytes, at 50 GB/s 2,684.354 us
    link = KVTransfer(50.0, latency_s=5e-6, kv_bytes_per_token=131_072)
    found = served([node("prefill"), node("decode")], link, (0.0, 1024, 3))
    (row,) = found.moved
    prefilled = 11_240_000_000  # 1 ms + 1,024 x 10 us
    arrived = prefilled + 2_684_354_560 + 5_000_000
    assert row.tolist() == [0, 0, 1, prefilled, prefilled, arrived, 134_217_728, arrived]
    assert found.first_token_ps.tolist() == [prefilled]
    assert found.finish_ps.tolist() == [arrived + 2 * 10**9]  # two tokens of 1 ms each
    assert found.replica.tolist() == [1] and found.scheduled_ps.tolist() == [0]
    visits = found.visits.to_frame()
    assert visits["stage"].tolist() == ["prefill", "decode"] and visits["node"].tolist() == [0, 1]
    assert visits["start_s"].tolist() == [0, arrived / PS]
    assert visits["finish_s"].tolist() == [prefilled / PS, found.finish_ps[0] / PS]
    frame = found.transfers_frame()
    assert frame["bytes"].tolist() == [134_217_728] and frame["end_s"].tolist() == [arrived / PS]


def test_a_tandem_of_two_queues_by_hand(served: Runner) -> None:
    # one seat each: a prompt of 100 takes 2 ms there, three tokens 3 ms here
    found = served(
        [node("prefill", max_num_seqs=1), node("decode", max_num_seqs=1)], INSTANT,
        (0.0, 100, 4), (0.0, 100, 4), (0.0, 100, 4), (0.030, 100, 4),
    )  # fmt: skip
    assert (found.first_token_ps / 1e9).tolist() == [2, 4, 6, 32]
    assert (found.finish_ps / 1e9).tolist() == [5, 8, 11, 35]


def test_transfers_of_a_node_share_its_link_in_order(served: Runner) -> None:
    # both prompts end in one iteration, at 1 + 0.32 ms; a block of 16 takes 1 ms
    link = KVTransfer(16e-6, latency_s=0.25e-3, kv_bytes_per_token=1)
    for nodes in (["prefill", "decode"], ["prefill", "decode", "decode"]):
        found = served([node(role) for role in nodes], link, (0.0, 16, 2), (0.0, 16, 2))
        assert (found.moved[:, 4] / 1e9).tolist() == [1.32, 2.32]  # start: the link is free
        assert (found.moved[:, 5] / 1e9).tolist() == [2.57, 3.57]  # end: latency included


def test_a_prefill_node_keeps_its_blocks_until_they_have_left(served: Runner) -> None:
    # room for one prompt of 32 there; two blocks take 20 ms to leave
    link = KVTransfer(1.6e-6, kv_bytes_per_token=1)
    found = served(
        [node("prefill", num_gpu_blocks=3), node("decode")], link, (0.0, 32, 2), (0.0, 32, 2)
    )
    assert (found.scheduled_ps / 1e9).tolist() == [0, 21.32]
    assert (found.moved[:, 5] / 1e9).tolist() == [21.32, 42.64]


def test_kv_sets_out_once_there_is_room_for_it(served: Runner) -> None:
    # room for one request of 32 + 3 tokens where they are decoded: the second waits for the first
    found = served(
        [node("prefill"), node("decode", num_gpu_blocks=4)], INSTANT, (0.0, 32, 4), (0.0, 32, 4)
    )
    assert (found.moved[:, 3] / 1e9).tolist() == [1.64, 1.64]  # both prompts in one iteration
    assert (found.moved[:, 4] / 1e9).tolist() == [1.64, 4.64]
    assert (found.finish_ps / 1e9).tolist() == [4.64, 7.64]


def test_short_prompts_are_served_whole_where_others_are_decoded(served: Runner) -> None:
    link = dataclasses.replace(INSTANT, min_prompt_tokens=50)
    found = served([node("prefill"), node("both")], link, (0.0, 49, 3), (0.0, 50, 3))
    assert found.moved[:, 0].tolist() == [1] and found.replica.tolist() == [1, 1]
    visits = found.visits.to_frame()
    assert visits["stage"].tolist() == ["both", "prefill", "decode"]
    # the first decodes from 1.49 ms on; the other, there at 1.5, is pulled as the iteration under
    # way ends, at 2.49, when the next one is scheduled, and joins the one after it, as in vLLM
    assert (found.finish_ps / 1e9).tolist() == [3.49, 5.49]


def test_answers_of_one_token_are_those_of_the_prefill_nodes_alone(served: Runner) -> None:
    rng = np.random.default_rng(2)
    rows = [(float(at), int(rng.integers(1, 90)), 1) for at in np.cumsum(rng.exponential(1e-3, 60))]
    found = served([node("prefill"), node("prefill"), node("decode")], INSTANT, *rows)
    plain = System((node("both"), node("both")), ROBIN)
    alone = run(jobs(*rows), plain, backend=found.backend)
    assert not len(found.moved)
    assert not differences(dataclasses.replace(found, moved=None), alone)


def test_a_trace_shows_what_a_request_goes_through_at_both_nodes() -> None:
    link = KVTransfer(16e-6, latency_s=0.25e-3, kv_bytes_per_token=1)
    system = System((node("prefill"), node("decode")), ROBIN, kv_transfer=link)
    made = ReferenceRun(jobs((0.0, 16, 3), (0.0, 16, 2)), system)
    made.steps = []
    made.advance()
    found = phases(made.records(), made.steps)
    assert [(one.node, one.kind, one.start_ps / 1e9, one.end_ps / 1e9) for one in found] == [
        (0, "prefill", 0, 1.32), (1, "transfer", 1.32, 2.57), (1, "decode", 2.57, 4.57),
        (0, "prefill", 0, 1.32), (1, "queued", 1.32, 2.32), (1, "transfer", 2.32, 3.57),
        (1, "decode", 3.57, 4.57),
    ]  # fmt: skip


# What is refused, in one line


SYSTEM = {"nodes": (node("prefill"), node("decode")), "routing": ROBIN, "kv_transfer": INSTANT}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": (node("prefill"),) * 2}, "no node has the role decode or both"),
        ({"nodes": (node("decode"), node("both"))}, "no node has the role prefill"),
        ({"nodes": (node("both"),)}, "every node's role is both"),
        ({"kv_transfer": None}, "need a link that carries KV .*give a kv_transfer"),
        ({"events": (Fail(0, 1, 2),)}, "failures of nodes can't be run together with roles"),
        ({"nodes": (node("prefill"), node("decode", enable_prefix_caching=True))},
         r"node 1 \(linear\): enable_prefix_caching can't be run together with roles"),
        ({"nodes": (node("prefill", async_scheduling=True), node("decode"))},
         r"node 0 \(linear\): async_scheduling can't"),
        ({"nodes": (node("prefill"), Node(ENGINE, PLAIN, load_policy("srtf"), "decode"))},
         "policy 'srtf', which preempts .recompute., can't"),
        ({"nodes": (node("prefill"), Node(ENGINE, PLAIN, load_policy("vtc"), "decode"))},
         "reads tenant_service, which is not counted across roles"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        System(**(SYSTEM | changed))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_sizes_of_kv_are_the_models() -> None:
    def system(*timings: Any) -> System:
        made = [Node(ENGINE, one, FCFS, role) for one, role in
                zip(timings, ("prefill", "decode"), strict=True)]  # fmt: skip
        return System(tuple(made), ROBIN, kv_transfer=KVTransfer(1.0))  # type: ignore[arg-type]

    eight, half = lw.timing("h100/llama-3.1-8b"), lw.timing("roofline:l40s/llama-3.1-8b")
    found = run(jobs((0.0, 20, 2)), system(eight, half), backend="reference")
    assert found.moved is not None and found.moved[0, 6] == 2 * 16 * 131_072
    for timings, message in (
        ((eight, PLAIN), "timing 'linear' doesn't say how large its model's KV is"),
        ((eight, lw.timing("h100/llama-3.2-3b")), "must serve one model"),
    ):
        with pytest.raises(InputError, match=message):
            run(jobs((0.0, 20, 2)), system(*timings), backend="reference")


def test_a_run_with_roles_is_not_asked_on_its_way() -> None:
    system = System(**SYSTEM)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="can't be asked on its way"):
        ReferenceRun(jobs((0.0, 20, 2)), system).advance(Stops(route=True))
    with pytest.raises(InputError, match="can't be asked on its way"):
        kernel.FastRun(jobs((0.0, 20, 2)), system)


NODES = "nodes:\n- {role: prefill}\n- {role: decode, count: 2, name: decoder}\n"


def test_a_file_of_nodes_says_what_joins_them(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(
        NODES + "kv_transfer: {bandwidth_gb_s: 50, min_prompt_tokens: 30, decode_router: jsq}\n"
    )
    result = lw.simulate(jobs((0.0, 20, 2), (0.0, 40, 2)), nodes=str(path), seed=1)
    assert result.transfers["request_id"].tolist() == [1]
    assert result.config["kv_transfer"] == {
        "bandwidth_gb_s": 50, "latency_s": 0.0, "min_prompt_tokens": 30, "decode_router": "jsq",
    }  # fmt: skip
    assert result.summary()["transfers"] == 1
    for text, message in (
        (NODES, "need a link"),
        (NODES + "kv_transfer: {bandwith_gb_s: 50}", "did you mean 'bandwidth_gb_s'"),
        (NODES + "kv_transfer: {latency_s: 1}", "it needs bandwidth_gb_s"),
        (NODES + "kv_transfer: 50", "expected keys and values, not 50"),
        (NODES + "kv_transfer: {bandwidth_gb_s: -1}", "must be a number above 0, not -1"),
        (NODES + "kv_transfer: {bandwidth_gb_s: 1, latency_s: x}", "latency_s must be a number"),
        (NODES + "kv_transfer: {bandwidth_gb_s: 1, min_prompt_tokens: 0.5}", "whole number"),
        (NODES + "kv_transfer: {bandwidth_gb_s: 1, decode_router: jsk}", "did you mean 'jsq'"),
        (NODES + "links: []", "unknown key 'links'"),
        (NODES.replace("prefill", "prefil"), "did you mean 'prefill'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            lw.simulate(jobs((0.0, 20, 2)), nodes=str(path))
        assert "\n" not in str(caught.value)
