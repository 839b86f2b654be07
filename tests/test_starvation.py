"""The starvation guard on small cases worked out by hand, and where it is off."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.transformers import PolicyOrder
from lengthwise.policies.plugins.transformers_guard import BatchGuard
from lengthwise.policy import Guard
from lengthwise.serving import Engine, Node, System, run
from lengthwise.serving.timing import LinearTiming
from lengthwise.starvation import WINDOW, StarvationGuard, Waiter
from lengthwise.workload import Workload


@dataclass(slots=True, eq=False, kw_only=True)
class One(Waiter):
    done: bool = False

    @property
    def gone(self) -> bool:
        return self.done


def guard(ratio: float = 1.0, floor_ps: int = 0) -> StarvationGuard[One]:
    return StarvationGuard(Guard(ratio, floor_ps * 1e-12))


def arrive(books: StarvationGuard[One], at: int, tokens: float, **given: Any) -> One:
    one = One(sequence=0, arrival_ps=at, predicted_tokens=tokens, **given)
    books.arrived(one)
    return one


def test_work_is_handed_out_in_order_of_arrival() -> None:
    books = guard()
    first, second = arrive(books, 0, 3), arrive(books, 1, 2)
    third = arrive(books, 2, 1)
    books.admitted(third, 2)  # 1 token served: the first begins, which needs 3
    assert books.turns(10) == [first]
    books.admitted(second, 10)  # 3 served, 3 begun
    assert books.turns(11) == []
    books.admitted(first, 12)  # 6 served: the second begins at 3, the third at 5
    assert books.turns(13) == [second, third]


def test_a_preempted_request_gives_back_what_it_still_owes() -> None:
    books = guard()
    first = arrive(books, 0, 10)
    books.admitted(first, 0)
    assert books.turns(2) == [first]  # 10 served, 10 begun
    second = arrive(books, 1, 5)
    books.preempted(first, 3, 4)  # 7 of 10 tokens are still to come: 3 served
    books.admitted(arrive(books, 5, 2), 5)  # 5 served
    assert books.turns(5) == []
    books.admitted(first, 6)  # 12 served
    assert books.turns(6) == [second]  # 15 begun: not the third


def test_what_was_generated_before_a_preemption_stays_served() -> None:
    books = guard()
    first = arrive(books, 0, 10)
    books.admitted(first, 0)
    books.turns(0)  # 10 served, 10 begun
    second = arrive(books, 1, 5)
    books.preempted(first, 3, 4)  # 3 of 10 tokens were generated: 3 served
    books.admitted(arrive(books, 5, 7), 5)  # 10 served
    assert books.turns(5) == []
    books.admitted(arrive(books, 6, 1), 6)  # 11 served
    assert books.turns(6) == [second]


def test_who_generated_more_than_predicted_owes_one_token() -> None:
    books = guard()
    first = arrive(books, 0, 2.5)  # 3 whole tokens
    books.admitted(first, 0)
    books.turns(0)  # 3 served, 3 begun
    second = arrive(books, 1, 1)
    books.preempted(first, 7, 2)  # 2 served
    books.admitted(arrive(books, 3, 1), 3)  # 3 served
    assert books.turns(3) == []
    books.admitted(arrive(books, 4, 1), 4)  # 4 served
    assert books.turns(4) == [second]


def test_an_idle_moment_squares_predicted_and_true_work() -> None:
    for idle in (False, True):
        books = guard()
        first = arrive(books, 0, 10)
        books.admitted(first, 0)
        books.turns(0)  # 10 served, 10 begun
        books.preempted(first, 4, 5)  # 4 served
        first.done = True  # its client hung up: 6 tokens will never be served
        if idle:
            books.idle()
        second = arrive(books, 100, 1)
        books.admitted(second, 130)
        # 1 served of 0 begun; without the idle moment 5 of 10
        assert books.turns(130) == ([second] if idle else [])


def test_waits_before_and_after_a_preemption_add_up() -> None:
    books = guard(ratio=0.001, floor_ps=54)
    one = arrive(books, 0, 10)
    books.admitted(one, 30)  # it waited 30
    books.turns(30)
    books.preempted(one, 1, 50)  # and waits again, as if it had begun at 20
    assert books.send_ahead(74) == []  # 54, which is the floor and not above it
    assert books.send_ahead(75) == [one]
    assert books.send_ahead(76) == []  # once and for all


def test_a_wait_is_forgotten_after_a_window() -> None:
    """Half of the longest wait lately is the bound; all requests are of one token."""
    books = guard(ratio=0.5)
    slow = arrive(books, 0, 1)
    books.admitted(slow, 100)
    books.turns(100)  # the first of the window: it waited 100
    for _ in range(WINDOW - 2):
        books.admitted(arrive(books, 200, 1), 200)
        books.turns(200)  # 998 that waited for nothing
    late = arrive(books, 1000, 1)
    books.watch(late)
    books.admitted(arrive(books, 1000, 1), 1000)
    assert books.turns(1000) == [late]  # the 1,000th: its turn comes, but the policy waits
    # the bound is half of 100, the longest of the last 1,000; the other's wait in the shadow is 40
    assert books.send_ahead(1040) == []
    books.admitted(arrive(books, 1040, 1), 1040)
    books.turns(1040)  # the other's turn, the 1,001st: 40, and 100 is forgotten
    assert books.send_ahead(1020) == []  # 20 is half of 40 and not above it
    assert books.send_ahead(1021) == [late]


def test_the_head_of_the_shadow_counts_while_it_waits() -> None:
    books = guard(ratio=0.5)
    head = arrive(books, 0, 5)
    books.watch(head)
    # nothing was served: FCFS would have made it wait as long, and 10 is above half of 10
    assert books.turns(10) == []
    assert books.send_ahead(10) == [head]
    fair = guard(ratio=1.0)
    fair.watch(arrive(fair, 0, 5))
    assert fair.send_ahead(10**15) == []  # nobody waits longer than FCFS makes it wait


# Served: one seat, a second a token


def served(policy: str, backend: Any = "reference") -> tuple[float, Any]:
    """When a request of 5 tokens ends that meets one of a token every second."""
    shorts = 24
    workload = Workload(
        {
            "arrival_s": [0.0, 1.0, *range(1, shorts + 1)],
            "prompt_tokens": [1] * (shorts + 2),
            "output_tokens": [3, 5, *[1] * shorts],
        }
    )
    engine = Engine(max_num_seqs=1, num_gpu_blocks=100)
    node = Node(engine, LinearTiming(base_s=1.0), load_policy(policy))
    system = System.replicated(node, 1, load_router("jsq"))
    records = run(workload, system, workload["output_tokens"].astype(float), backend=backend)
    return float(records.finish_ps[1]) / 1e12, records


BY_RATIO = pytest.mark.parametrize(
    ("ratio", "ends_s"),
    # A request of 3 tokens runs from 0 to 3; then the one of 5, which came at 1, sees one of a
    # token pass every second. Of what is served the first 3 tokens are the first one's. At 4 one
    # more is: its turn would have come, after 3 s. From then on a short ends every second, 3 s
    # after it came, and has had its turn at the latest then: the longest wait under FCFS stays 3 s.
    # It goes first as soon as it has waited more than ratio x 3 s, and takes 5 s:
    [
        (1, 5 + 5),  # at 5 it has waited 4; at 4 just the 3
        (1.5, 6 + 5),  # at 6 it has waited 5, above 4.5
        (2, 8 + 5),  # at 8 it has waited 7; at 7 just the 6
        (0, 27 + 5),  # never: 24 shorts go first
    ],
)


@pytest.mark.parametrize("backend", ["reference", "fast"])
@BY_RATIO
def test_the_ratio_is_how_much_longer_than_fcfs_one_may_wait(
    ratio: float, ends_s: float, backend: str
) -> None:
    assert served(f"sjf+guard:ratio={ratio},floor_s=0", backend)[0] == ends_s


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_nobody_goes_first_for_a_wait_below_the_floor(backend: str) -> None:
    # at 19 it has waited 18 and not more; at 20 it has
    assert served("sjf+guard:ratio=1,floor_s=18", backend)[0] == 20 + 5


@pytest.mark.parametrize("policy", [
    "sjf+guard:ratio=0.5,floor_s=0",
    "srtf+preempt:price=0.0+guard:ratio=0.3,floor_s=0",
    "mlfq:quantum=2+preempt:price=0.0+guard:ratio=1,floor_s=0.5",
])  # fmt: skip
def test_the_compiled_guard_is_this_one_over_more_than_a_window(policy: str) -> None:
    """Waves with idle moments between them; predictions that are wrong; waits to be forgotten."""
    rng = np.random.default_rng(8)
    count = WINDOW + 400
    gaps = rng.exponential(1.0, count) + np.where(np.arange(count) % 350 == 349, 4000.0, 0.0)
    output = np.rint(rng.lognormal(0.3, 0.9, count)).astype(int) + 1
    workload = Workload(
        {"arrival_s": np.cumsum(gaps), "prompt_tokens": rng.integers(1, 9, count),
         "output_tokens": output}
    )  # fmt: skip
    engine = Engine(max_num_seqs=3, num_gpu_blocks=60, block_size=4, max_num_batched_tokens=16)
    system = System.replicated(
        Node(engine, LinearTiming(base_s=1.0), load_policy(policy)), 1, load_router("jsq")
    )
    predicted = np.maximum(output * rng.lognormal(0, 0.8, count), 1.0)
    slow, fast = (
        run(workload, system, predicted, backend=backend) for backend in ("reference", "fast")
    )
    assert slow.finish_ps.tolist() == fast.finish_ps.tolist()
    assert slow.scheduled_ps.tolist() == fast.scheduled_ps.tolist()
    assert slow.preemptions.tolist() == fast.preemptions.tolist()
    off = load_policy(policy.rpartition("+guard")[0] + "+guard:ratio=0")
    system = System.replicated(Node(engine, LinearTiming(base_s=1.0), off), 1, load_router("jsq"))
    unguarded = run(workload, system, predicted, backend="fast")
    assert (unguarded.finish_ps != fast.finish_ps).sum() > 50  # the guard had work to do


class OneSeat:
    """As much of transformers' scheduler as a policy's goes before, with one seat."""

    max_requests_per_batch, block_new_requests = 1, False

    def __init__(self) -> None:
        self.active_requests: dict[str, Any] = {}
        self.waiting_requests: dict[str, Any] = {}

    @property
    def waiting_requests_order(self) -> list[str]:
        return list(self.waiting_requests)

    def add_waiting_request(self, state: Any) -> None:
        self.waiting_requests[state.request_id] = state

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        waiting = self._get_waiting_candidates()  # type: ignore[attr-defined]
        state = next(iter([*self.active_requests.values(), *waiting]))
        self.waiting_requests.pop(state.request_id, None)
        self.active_requests[state.request_id] = state
        return [SimpleNamespace(state=state)], False, 1, 1


@BY_RATIO
def test_the_ratio_means_the_same_in_transformers(ratio: float, ends_s: float) -> None:
    jobs = [(0, 3), (1, 5), *((at, 1) for at in range(1, 25))]
    made: Any = type("Made", (PolicyOrder, OneSeat), {
        "policy": load_policy("sjf"), "rule": Guard(ratio, 0.0), "default_tokens": 256.0,
        "predict": staticmethod(lambda prompt, known: [len(prompt)]), "known": None,
        "clock": lambda self: self.now_s,
    })()  # fmt: skip
    for second in range(40):
        made.now_s = float(second)
        for place, (at, tokens) in enumerate(jobs):
            if at == second:
                made.add_waiting_request(SimpleNamespace(
                    request_id=str(place), created_time=float(at), initial_tokens=[0] * tokens,
                    generated_tokens=[],
                ))  # fmt: skip
        (future,), *_ = made.schedule_batch(2048, 1 << 30)
        state = future.state
        state.generated_tokens.append(0)
        if len(state.generated_tokens) == len(state.initial_tokens):
            del made.active_requests[state.request_id]
            if state.request_id == "1":
                assert second + 1 == ends_s
                assert made.lengthwise_counters.counts["guarded", "wait"] == (ratio > 0)
                return
    pytest.fail("it never ended")


# Off, and not said


def test_zero_is_off_and_nothing_said_is_something_else() -> None:
    silent, off = load_policy("srtf"), load_policy("srtf+guard:ratio=0")
    own = load_policy("srtf+guard:ratio=3,floor_s=2")
    assert (silent.guard, off.guard, own.guard) == (None, Guard(0.0), Guard(3.0, 2.0))
    # in the simulator only the policy is asked
    assert (silent.acting_guard, off.acting_guard) == (None, None)
    assert own.acting_guard == Guard(3.0, 2.0)
    # in a plugin the settings are, where the policy says nothing
    assert Settings(policy="srtf").guard_of(silent) == Guard(1.5, 0.5)
    assert Settings(policy="srtf", guard=0.0).guard_of(silent).ratio == 0
    for settings in (Settings(policy="srtf"), Settings(policy="srtf", guard=0.0)):
        assert settings.guard_of(off).ratio == 0
        assert settings.guard_of(own) == Guard(3.0, 2.0)


def test_in_order_of_arrival_nobody_starves() -> None:
    assert load_policy("fcfs+guard").acting_guard is None
    assert served("fcfs+guard:ratio=0.1,floor_s=0")[0] == served("fcfs")[0]


def test_a_guard_that_is_off_changes_nothing() -> None:
    with_it, without = served("sjf+guard:ratio=0"), served("sjf")
    assert np.array_equal(with_it[1].finish_ps, without[1].finish_ps)


@pytest.mark.parametrize("bad", ["ratio=-1", "ratio=inf", "floor_s=-0.1", "floor_s=inf"])
def test_what_no_guard_can_be_is_refused(bad: str) -> None:
    with pytest.raises(InputError, match="guard ratio must be 0 or more and finite"):
        load_policy(f"sjf+guard:{bad}")


def test_the_guard_in_transformers_forgets_who_is_gone() -> None:
    known: dict[str, Any] = {}
    books = BatchGuard(Guard(1.0, 0.0), has=known.__contains__)
    for number in range(1000):
        state = SimpleNamespace(
            request_id=str(number), lengthwise_sequence=number, created_time=float(number),
            lengthwise_predicted=3.0, generated_tokens=[],
        )  # fmt: skip
        known[state.request_id] = state
        books.arrived(state, idle=False)
        books.send_ahead(number + 0.5)
        books.scheduled([state], number + 0.5, known)
        known.pop(str(number - 1), None)
    assert len(books._waiters) <= 2 * len(known) + 65
    assert books.is_ahead("0") is False
