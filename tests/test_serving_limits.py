"""Where simulated time ends, both engines say so in the same line, and neither wraps around."""

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.eval.simulate import simulate
from lengthwise.serving import Engine
from lengthwise.serving.system import MOST_SEATS
from lengthwise.workload import Workload

BACKENDS = ("fast", "reference")


def chain(requests: int, think_s: float) -> Workload:
    """Requests that each wait for the one before, and ``think_s`` longer."""
    return Workload(
        {
            "arrival_s": np.zeros(requests), "prompt_tokens": np.full(requests, 100),
            "output_tokens": np.full(requests, 5), "parent": np.arange(requests) - 1,
            "think_s": np.full(requests, think_s),
        },
        name="chain",
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_ends_after_106_days(backend: str) -> None:
    last = simulate(chain(10, 1e6), "fcfs", backend=backend).requests["finish_s"].max()
    assert 9e6 < last < 9.001e6
    for workload in (chain(11, 1e6), chain(3, 9e6)):
        with pytest.raises(InputError, match=r"beyond 9.2e\+06 s \(106 days\) of simulated time"):
            simulate(workload, "fcfs", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_iteration_takes_days(backend: str) -> None:
    with pytest.raises(InputError, match="an iteration takes longer than 9007 s"):
        simulate(chain(2, 0), "fcfs", backend=backend, nodes=[{"speed": 1e-9}])


def test_what_takes_all_memory_is_not_begun() -> None:
    with pytest.raises(InputError, match=f"up to {MOST_SEATS}: fewer replicas"):
        simulate(chain(2, 0), "fcfs", replicas=10**15)
    with pytest.raises(InputError, match=f"up to {MOST_SEATS}: fewer replicas"):
        simulate(chain(2, 0), "fcfs", nodes=[{"count": 10**15}])
    with pytest.raises(InputError, match="max_num_batched_tokens may be up to"):
        Engine(max_num_batched_tokens=2**40)
    with pytest.raises(InputError, match="enable_prefix_caching must be true or false"):
        Engine(enable_prefix_caching="false")  # type: ignore[arg-type]
