"""Every term and score on one replica and one request, and blends and networks, by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import Blend, blend, spelled
from lengthwise.policies.bundle import _types
from lengthwise.policies.learned import MLP
from lengthwise.policies.terms import TERMS

# What is true of one request at one replica, and of the same replica when nothing is there.
KNOWN: dict[str, float] = {
    "predicted_tokens": 400.0, "prompt_tokens": 60.0, "arrival_s": 12.5, "generated_tokens": 30.0,
    "computed_tokens": 25.0, "expected_remaining_tokens": 333.0, "running_requests": 5.0,
    "waiting_requests": 4.0, "max_seats": 6.0, "outstanding_requests": 9.0,
    "decode_tokens_per_s": 50.0, "outstanding_tokens": 1000.0, "prefill_backlog_tokens": 120.0,
    "decode_backlog_tokens": 900.0, "routed_requests": 19.0, "kv_utilization": 0.9,
    "free_seats": 1.0, "now_s": 20.5, "priority": 3.0, "cached_tokens": 16.0, "preemptions": 2.0,
    "deadline_s": 40.0, "oldest_request_s": 7.0, "gittins_index": 250.0,
    "remaining_tokens_p90": 800.0,
}  # fmt: skip
EMPTY = {
    **KNOWN, "running_requests": 0.0, "waiting_requests": 0.0, "max_seats": 0.0,
    "outstanding_requests": 0.0, "decode_tokens_per_s": 0.5, "computed_tokens": 99.0,
    "predicted_tokens": -4.0, "decode_backlog_tokens": 0.0,
}  # fmt: skip

BY_HAND: dict[str, tuple[float, float]] = {
    "predicted": (400, -4), "root_predicted": (20, 0), "prompt": (60, 60),
    # 400 iterations, of a cache of 60 and on average 200 tokens more
    "footprint": (400 * 260 / 1000, -4 * 58 / 1000),
    "arrival": (12.5, 12.5), "remaining": (370, -34), "expected_remaining": (333, 333),
    "left_prompt": (35, 0), "requests": (9, 0), "requests_per_seat": (1.5, 0),
    # this one counted: ten of fifty tokens a second, in thousandths
    "unfinished_s": (200, 1000), "unfinished_per_seat": (10 / 6, 1),
    "own_step_s": (400 * 6 / 50, 0), "own_crowd_s": (400 * 9 / 50, 0),
    "prompt_crowd_s": (60 * 9 / 50, 0), "outstanding": (1000, 1000), "outstanding_s": (20, 1000),
    "outstanding_per_seat": (1000 / 6, 1000), "prefill_s": (2.4, 120), "decode_s": (18, 0),
    # ten requests of which six have a seat: four of nine must end first
    "seat_wait_s": (18 * 4 / 9, 0), "own_s": (8, -4), "own_prompt_s": (1.2, 60),
    "turn": (400, 20_000), "kv": (0.9, 0.9), "new_tokens_requests": (180 * 9 / 1000, 0),
}  # fmt: skip


def of(score: Any, known: dict[str, float]) -> float:
    return float(np.asarray(score.evaluate({n: known[n] for n in score.features})))


def test_every_term_is_here() -> None:
    assert set(BY_HAND) == set(TERMS)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_term_by_hand(name: str) -> None:
    assert of(TERMS[name], KNOWN) == pytest.approx(BY_HAND[name][0])
    assert of(TERMS[name], EMPTY) == pytest.approx(BY_HAND[name][1])


def test_a_step_is_of_at_most_32_seats() -> None:
    score = TERMS["own_step_s"]
    assert of(score, {**KNOWN, "max_seats": 99.0}) == pytest.approx(400 * 32 / 50)
    assert of(score, {**KNOWN, "max_seats": 32.0}) == of(score, {**KNOWN, "max_seats": 33.0})


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("sjf", 400), ("fcfs", 12.5), ("srtf", 333), ("priority", 3),
        ("hrrn", -8 / 401), ("hrrn:floor_tokens=100", -8 / 500),
        ("work", 404.8), ("work:b=0.5", 430),
        ("weighted-sjf", 1600), ("weighted-sjf:step=0.5", 1000),
        ("gittins", 250), ("tie", 333 + 0.5 * 800), ("tie:beta=2", 333 + 2 * 800), ("trail", 333),
        ("longest", -400), ("edf", 40), ("llf", 40 - 0.02 * 333), ("llf:token_s=0.1", 40 - 33.3),
        ("niyama", 40 + 0.02 * 333), ("niyama:token_s=0.05,work=2", 40 + 2 * 16.65),
        ("niyama:token_s=0.06", 1e9 + 40 + 19.98), ("las", 30), ("las:computed=2", 80),
        ("scls", 0), ("scls:slice=30", 30), ("scls:slice=31", 0), ("scls:slice=14", 28),
        ("ageing", 400 + 20 * 12.5), ("ageing:tokens_per_s=2", 425), ("lpm", -16),
        ("lpm:most_waiting=4", -16), ("lpm:most_waiting=3", 0),
        ("ltr", 400), ("ltr:starved_s=7", 400 - 1e9), ("ltr:starved_s=8", 400),
        ("ltr:starved_s=7,quantum=30", 400), ("ltr:starved_s=7,quantum=31", 400 - 1e9),
        ("fastserve", 0), ("fastserve:quantum=30", 30), ("fastserve:quantum=30,starved_s=7", 30),
        ("fastserve:quantum=31,prefill_ratio=60", 31),
        ("fastserve:quantum=31,prefill_ratio=60,starved_s=7", 0),
        ("fastserve:quantum=31,prefill_ratio=60,starved_s=8", 31),
        ("fastserve:quantum=10,levels=2", 10), ("fastserve:quantum=10,levels=3", 30),
        ("mlfq", 0), ("mlfq:quantum=30", 30), ("mlfq:quantum=31", 0),
        ("mlfq:quantum=10,levels=2", 10), ("mlfq:quantum=10,levels=3", 30),
        ("mlfq:quantum=31,prefill_ratio=60", 31), ("mlfq:quantum=31,prefill_ratio=61", 0),
        ("mlfq:quantum=31,prefill_ratio=60,skip_join=false", 0),
    ],
)  # fmt: skip
def test_a_policy_by_hand(spec: str, value: float) -> None:
    assert of(load_policy(spec).score, KNOWN) == pytest.approx(value)


def test_weights_below_priority_0_by_hand() -> None:
    score = load_policy("weighted-sjf").score
    found = [of(score, {**KNOWN, "priority": p}) for p in (0.0, 1.0, -1.0, -3.0)]
    assert found == [400, 800, 200, 100]


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("jsq", 9), ("least-tokens", 1000), ("least-requests", 0.2), ("max-capacity", None),
        ("jsew", 0.08 * 2.4 + 18 * (4 / 9 + 0.2)), ("jsew:b=0,crowding=1", 18 * (4 / 9 + 1)),
        ("least-load", 1.5 + 5 * 0.1), ("least-load:penalty=1,threshold=0.5", 1.5 + 0.4),
        ("min-min", 1460 / 50), ("max-min", 1000), ("max-min:large_tokens=400", 1000),
        ("weighted-round-robin", None), ("lmetric", 164 * 9),
    ],
)  # fmt: skip
def test_a_router_by_hand(spec: str, value: float | None) -> None:
    score = load_router(spec).score
    found = of(score, KNOWN)
    if value is not None:
        assert found == pytest.approx(value)
    else:  # a faster replica is never worse
        assert of(score, {**KNOWN, "decode_tokens_per_s": 60.0}) <= found


def test_small_requests_are_packed_where_a_seat_is_free() -> None:
    score = load_router("max-min").score
    free = {**KNOWN, "free_seats": 5.0}
    assert of(score, free) == -1001
    assert of(score, {**free, "predicted_tokens": 512.0}) == 1000
    assert of(score, {**free, "free_seats": 4.0}) == 1000


def test_least_load_and_jsew_where_nothing_is() -> None:
    assert of(load_router("least-load").score, {**EMPTY, "kv_utilization": 0.8}) == 0
    assert of(load_router("jsew").score, EMPTY) == pytest.approx(0.08 * 120)


# Blends and networks


def test_a_blend_is_the_sum_of_its_terms() -> None:
    made = Blend(("predicted", "own_s", "prompt"), (1.0, -2.0, 0.5))
    assert made.features == ("predicted_tokens", "decode_tokens_per_s", "prompt_tokens")
    assert made(400.0, 50.0, 60.0) == 400 - 16 + 30
    assert isinstance(made(400.0, 50.0, 60.0), float)
    many = made(np.array([400.0, 1.0]), 50.0, np.array([60.0, 2.0]))
    assert many.tolist() == [414.0, 1 - 0.04 + 1]
    score = blend({"predicted": 1, "prompt": 0.5}, "mine")
    assert (score.name, of(score, KNOWN)) == ("mine", 430)
    assert made.score().name == "blend"
    assert spelled(("predicted", "prompt", "kv"), (1, 0.0812, 0)) == "predicted + 0.0812 prompt"
    assert spelled(("kv",), (0.0,)) == "0"
    assert spelled(("kv", "prompt"), (-1.0, 1.0)) == "-1 kv + prompt"
    with pytest.raises(UnknownNameError, match="did you mean 'predicted'"):
        Blend(("predictd",), (1.0,))
    for terms, weights in (((), ()), (("prompt",), (1.0, 2.0))):
        with pytest.raises(InputError, match="can't have"):
            Blend(terms, weights)
    with pytest.raises(InputError, match="finite number"):
        Blend(("prompt",), (math.inf,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.weights = (0.0,)  # type: ignore[misc]


def network(skip: Any = (0.5, -1.0), log: tuple[bool, bool] = (True, False)) -> MLP:
    return MLP(
        np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array(log),
        ((np.array([[1.0, -1.0], [0.5, 0.25]]), np.array([0.1, -0.2])),
         (np.array([[2.0, 3.0]]), np.array([0.7]))),
        None if skip is None else np.array(skip),
    )  # fmt: skip


def test_a_network_by_hand() -> None:
    a, b = -7.0, 10.0
    x = np.array([(math.copysign(math.log1p(7), a) - 1) / 2, (b - 2) / 4])
    h = np.tanh(np.array([[1.0, -1.0], [0.5, 0.25]]) @ x + [0.1, -0.2])
    plain = float(np.array([2.0, 3.0]) @ h + 0.7)
    assert network(None)(a, b) == pytest.approx(plain, rel=1e-12)
    linear = 0.5 * x[0] - x[1]
    assert network()(a, b) == pytest.approx(plain + linear, rel=1e-12)
    found = network()(np.array([a, a, 3.0]), b)
    assert found.shape == (3,)
    assert found[:2].tolist() == [network()(a, b)] * 2
    assert found[2] == network()(3.0, b)
    assert network()(np.zeros((2, 0)), b).shape == (2, 0)
    seen = network().normalise(np.array([[a, b]]))
    assert seen[0] == pytest.approx(x)
    raw = np.array([[a, b]])
    network().normalise(raw)
    assert raw.tolist() == [[a, b]]  # untouched
    many = network()(np.linspace(-5, 5, 20_000), np.linspace(0, 9, 20_000))
    some = [network()(x, y) for x, y in ((-5.0, 0.0), (5.0, 9.0))]
    assert [many[0], many[-1]] == some
    assert network() == network()
    assert hash(network()) == hash(network())
    assert network() != network(None)
    assert network() != network(log=(False, False))
    assert network() != "a network"


def test_values_of_a_bundle_have_their_types() -> None:
    _types({"a": 1, "b": 2.5, "c": "x", "d": True}, a=float, b=float, c=str, d=bool)
    _types({"a": 1}, a=int)
    for value, kind in (
        (True, float),
        (True, int),
        (1, bool),
        ("1", float),
        (1.5, int),
        (None, str),
    ):
        with pytest.raises(TypeError, match="a must be"):
            _types({"a": value}, a=kind)
    with pytest.raises(TypeError, match="at most"):
        _types({"a": 10**30}, a=float)


# How specs are read


def test_options_of_specs_by_type() -> None:
    policy = load_policy("mlfq:quantum=16,skip_join=FALSE+preempt:price=2,margin=3,max_per_step=4")
    assert (policy.score.tunables["quantum"], policy.score.tunables["skip_join"]) == (16, False)
    assert (policy.preemption.price, policy.preemption.margin) == (2.0, 3.0)
    assert isinstance(policy.preemption.price, float)
    assert policy.preemption.max_per_step == 4
    assert load_router("jsq:choices=2").choices == 2
    assert load_router("jsq").choices == 0
    for wrong, said in (
        ("jsq:choices=-1", "whole number of replicas"), ("jsq:choices=true", "whole number"),
        ("jsq:choices=1.5", "whole number"), ("least-load:penalty=nan", "nan is no value"),
        ("least-load:penalty", "expected name=value"), ("a/b", "neither a bundle"),
        ("x.py", "needs a function"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            load_router(wrong)
    for wrong, said in (
        ("srtf+preempt:max_per_step=1.5", "takes int"),
        ("srtf+preempt:price=true", "takes float"),
        ("srtf+preempt:prise=1", "did you mean 'price'"),
    ):
        with pytest.raises(InputError, match=said):
            load_policy(wrong)
