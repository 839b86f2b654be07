"""What a user may write for a policy, and what each wrong spelling is told."""

from pathlib import Path

import numpy as np
import pytest

from lengthwise import registry
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.bundle import write_bundle
from lengthwise.policy import Between, Guard, Preemption, SchedulingPolicy


def longest_prompt(prompt_tokens: float, *, weight: float = 1.0) -> float:
    return -weight * prompt_tokens


def test_a_name_takes_the_defaults_and_keeps_its_spelling() -> None:
    policy = load_policy("srtf")
    assert policy.name == "srtf"
    assert policy.preemption == Preemption(mode="recompute")
    assert load_policy(policy) is policy
    assert load_policy("sjf").preemption.mode == "none"
    assert load_policy("fcfs").queue == "fcfs"


def test_tunables_preemption_and_admission() -> None:
    policy = load_policy("mlfq:quantum=64,skip_join=false+preempt:margin=2,price=0+admit:reserve=1")
    assert policy.score.tunables["quantum"] == 64
    assert policy.score.tunables["skip_join"] is False
    assert (policy.preemption.margin, policy.preemption.price) == (2.0, 0.0)
    assert policy.admission.reserve == 1.0
    # 70 tokens served: below 64 level 0, below 64 + 128 level 1, which begins at 64
    assert policy.score.evaluate({"generated_tokens": 70, "prompt_tokens": 9999}) == 64


def test_a_guard_is_there_when_named() -> None:
    assert load_policy("srtf").guard is None
    assert load_policy("srtf+guard").guard == Guard(ratio=1.5)
    assert load_policy("srtf+preempt:price=0+guard:floor_s=2").guard == Guard(1.5, 2.0)


def test_naming_preemption_switches_it_on_and_mode_none_off() -> None:
    assert load_policy("sjf+preempt").preemption.mode == "recompute"
    assert load_policy("srtf+preempt:mode=none").preemption.mode == "none"
    assert load_policy("sjf+preempt:mode=swap").preemption.mode == "swap"


def test_a_function_and_a_file_are_policies(tmp_path: Path) -> None:
    assert load_policy(longest_prompt).score(3) == -3
    file = tmp_path / "mine.py"
    file.write_text("def score(prompt_tokens, *, weight=1.0):\n    return weight * prompt_tokens\n")
    assert load_policy(f"{file}:score:weight=2").score(3) == 6.0
    assert load_router(f"{file}:score").score(3) == 3.0
    assert load_policy(f"{file}:score+preempt:margin=5").preemption.margin == 5.0


def test_a_router_and_its_choices() -> None:
    assert load_router("power-of-two").choices == 2
    assert load_router("jsq:choices=3").choices == 3
    assert load_router(load_router("jsq")).name == "jsq"


def test_a_bundle_s_path_may_hold_a_plus(tmp_path: Path) -> None:
    folder = write_bundle(load_policy("mlfq:quantum=8"), tmp_path / "a+b")
    assert load_policy(str(folder)).score.tunables["quantum"] == 8
    assert load_policy(f"{folder}+preempt:margin=1").preemption.margin == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("srft", "did you mean 'srtf'"),
        ("dfs-weight", "order of the whole queue.*'lpm' is its other"),
        ("", "unknown policy ''"),
        ("mlfq:quantums=3", "did you mean 'quantum'"),
        ("mlfq:quantum=3.5", "takes int, not 3.5"),
        ("mlfq:quantum=true", "takes int, not True"),
        ("mlfq:skip_join=1", "takes bool, not 1"),
        ("mlfq:quantum", "expected name=value, not 'quantum'"),
        ("mlfq:quantum=", "expected name=value"),
        ("mlfq:quantum=0", "tunable mlfq:quantum takes 1 to 1048576, not 0"),
        ("mlfq:levels=-3", "tunable mlfq:levels takes 1 to 32, not -3"),
        ("work:b=-0.1", "tunable work:b takes 0 to 100, not -0.1"),
        ("work:b=inf", "takes 0 to 100, not inf"),
        ("hrrn:floor_tokens=nan", "nan is no value"),
        ("hrrn:floor_tokens=many", "takes float, not 'many'"),
        ("srtf+preempts", "did you mean 'preempt'"),
        ("srtf+preempt:margins=1", "did you mean 'margin'"),
        ("srtf+preempt:margin=-1", "must be 0 or more"),
        ("srtf+preempt:max_per_step=0", "must be 1 or more"),
        ("srtf+preempt:mode=recomputed", "did you mean 'recompute'"),
        ("srtf+preempt:price=cheap", "price takes float, not 'cheap'"),
        ("srtf+admit:reserve=-1", "must be 0 or more"),
        ("./nowhere", "neither a bundle"),
        ("nowhere.py:score", "does not exist"),
        ("nowhere.py", "needs a function"),
        ("jsq", "unknown policy 'jsq'"),
    ],
)
def test_a_wrong_spelling_is_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_policy(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jsqq", "did you mean 'jsq'"),
        ("jsq:choices=-1", "whole number of replicas"),
        ("jsq:choices=two", "whole number of replicas"),
        ("jsq:choice=2", "unknown tunable"),
        ("srtf", "unknown router 'srtf'"),
    ],
)
def test_a_wrong_router_is_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_router(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other(now_s): return now_s", "did you mean"),
        ("def score(predicted_token): return 1", "did you mean 'predicted_tokens'"),
        ("def score(output_tokens): return 1", "unknown feature 'output_tokens'"),
        ("def score(*values): return 1", r"takes \*values"),
        ("def score(now_s: return 1", "SyntaxError"),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(code + "\n")
    spec = "scores" if "other" in code else "score"
    with pytest.raises(InputError, match=message if spec == "score" else "unknown function"):
        load_policy(f"{tmp_path}/mine.py:{spec}")


def test_the_wrong_kind_of_bundle_is_named(tmp_path: Path) -> None:
    router = write_bundle(load_router("jsq"), tmp_path / "router")
    policy = write_bundle(load_policy("srtf"), tmp_path / "policy")
    with pytest.raises(InputError, match="is a router, not a scheduling policy"):
        load_policy(str(router))
    with pytest.raises(InputError, match="is a scheduling policy, not a router"):
        load_router(str(policy))


def test_a_thing_that_is_no_policy_is_named() -> None:
    with pytest.raises(InputError, match="not a policy: 7"):
        load_policy(7)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a router: 7"):
        load_router(7)  # type: ignore[arg-type]
    assert issubclass(UnknownNameError, InputError)
    assert isinstance(load_policy(Path("fcfs")), SchedulingPolicy)


def test_what_a_user_s_function_declares_holds(tmp_path: Path) -> None:
    """Also where annotations are strings; without a declaration any number goes."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from typing import Annotated\n"
        "from lengthwise.policy import Between\n"
        "def score(prompt_tokens, *, k: Annotated[int, Between(1, 9)] = 2, free: float = 0.5):\n"
        "    return k * prompt_tokens + free\n"
    )
    assert load_policy(f"{file}:score:k=9,free=-7").score.tunables == {"k": 9, "free": -7.0}
    with pytest.raises(InputError, match="tunable score:k takes 1 to 9, not 10"):
        load_policy(f"{file}:score:k=10")
    with pytest.raises(InputError, match="tunable score:free takes numbers, not nan"):
        load_policy(f"{file}:score").score.with_tunables({"free": float("nan")})
    file.write_text(file.read_text().replace("= 2,", "= 0,"))
    with pytest.raises(InputError, match="takes 1 to 9, not 0"):
        load_policy(f"{file}:score")
    file.write_text(file.read_text().replace("Between(1", "Betwixt(1"))
    with pytest.raises(InputError, match=r"annotation of tunable 'k' .* can't be read: NameError"):
        load_policy(f"{file}:score")
    with pytest.raises(InputError, match="from 3 to 1 is none"):
        Between(3, 1)


@pytest.mark.parametrize("kind", ["policy", "router"])
def test_every_registered_number_declares_its_range(kind: str) -> None:
    """And the score is a number at both ends, so that tuning can't leave what runs."""
    for name in registry.names(kind):
        score = registry.load(kind, name).score
        numbers = {k for k, v in score.tunables.items() if not isinstance(v, bool)}
        assert set(score.ranges) == numbers
        for pick in ("low", "high"):
            ends = {k: type(score.tunables[k])(getattr(score.ranges[k], pick)) for k in numbers}
            for value in (0, 1, 1_000_000):
                found = score.with_tunables(ends)(*(np.array([value]) for _ in score.features))
                assert np.isfinite(found).all() and (np.abs(found) < 2**53).all(), (name, pick)


def test_parts_that_follow_each_other_keep_what_was_said() -> None:
    twice = load_policy("sjf+preempt:mode=swap+preempt:price=0.5").preemption
    assert (twice.mode, twice.price) == ("swap", 0.5)
    assert load_policy("sjf+preempt:mode=none+preempt:price=0.5").preemption.mode == "recompute"
    assert load_policy("sjf+preempt:mode=none,price=0.5").preemption.mode == "none"
    assert load_policy("srtf+preempt:price=0.5").preemption.mode == "recompute"
