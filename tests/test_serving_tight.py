"""The fast engine with every index checked, where its arrays are tight and grow on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InvariantError
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Engine, Node, Slow, Stops, System, begin
from lengthwise.serving.fast import setup
from lengthwise.serving.fast.compiler import build, memory
from lengthwise.workload import Workload
from tests.test_serving_events import chosen, happening
from tests.test_serving_kernel import TwoClocks, differences


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Machine code that tells of an index outside of its table, as with NUMBA_BOUNDSCHECK=1."""
    monkeypatch.setattr(memory, "CHECKED", True)
    build.compiled.cache_clear()
    yield
    build.compiled.cache_clear()


def crowd(n: int, seats: int, **given: Any) -> dict[str, Any]:
    """A herd among requests that come one by one, to two small nodes with all a node can have."""
    rng = np.random.default_rng(n)
    prompt, output = rng.integers(1, 60, n), rng.integers(1, 40, n)
    columns = {
        "arrival_s": np.sort(np.where(rng.random(n) < 0.4, 1.0, rng.uniform(0, 6, n))),
        "prompt_tokens": prompt,
        "output_tokens": output, "hash_block_tokens": np.full(n, 4),
        "prefix_hashes": [tuple(rng.integers(0, 2, p // 4).tolist()) for p in prompt],
    }  # fmt: skip
    engine = Engine(
        max_num_seqs=seats, num_gpu_blocks=60, block_size=4, enable_prefix_caching=True,
        async_scheduling=True, max_num_batched_tokens=64,
    )  # fmt: skip
    policy = load_policy("srtf+preempt:price=0.0,max_per_step=3+guard:ratio=0.1,floor_s=0")
    nodes = tuple(Node(engine, TwoClocks(0.01, 1e-4), policy, name=name) for name in "ab")
    events = (Slow(0, 0.1, 2.0, 3.0),)
    return {
        "workload": Workload(columns), "system": System(nodes, load_router("jsew"), events=events),
        "predictions": np.maximum(1.0, output * np.exp(0.5 * rng.standard_normal(n))), **given,
    }  # fmt: skip


def played(given: dict[str, Any], backend: Any) -> Any:
    made = begin(**given, backend=backend)
    while (stop := made.advance(Stops(route=True, admit=stop_often(given)))).kind != "done":
        if stop.kind == "route":
            made.answer(stop.request % 2)
        else:
            made.answer([stop.candidates - 1])
    return made.records()


def stop_often(given: dict[str, Any]) -> bool:
    return bool(given["seed"])


def test_runs_in_which_things_happen_stay_inside_their_arrays(checked: None) -> None:
    tried = 0
    for seed in range(12):
        given = happening(seed)
        given.pop("log_iterations")
        if given["system"].events:
            tried += 1
            chosen(begin(**given, backend="fast"), seed)  # a fault is an error
    assert tried > 8


@pytest.mark.parametrize(("seats", "seed"), [(1, 0), (3, 0), (3, 1)])
def test_herds_stay_inside_arrays_that_grow(checked: None, seats: int, seed: int) -> None:
    given = crowd(300, seats, seed=seed)
    slow, quick = (played(given, backend) for backend in ("reference", "fast"))
    assert differences(slow, quick) == []
    assert not seed or quick.preemptions.sum() > 20


def test_an_array_that_is_too_small_is_told(checked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the runs above say something."""
    plain = setup._guard

    def little(*given: Any) -> Any:
        return plain(*given) | {"since": np.zeros(5, np.int64)}

    monkeypatch.setattr(setup, "_guard", little)
    with pytest.raises(InvariantError, match="stopped with a fault"):
        played(crowd(300, 3, seed=0), "fast")
