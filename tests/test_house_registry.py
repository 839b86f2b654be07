"""Every name in every table loads, and unknown names say which is nearest."""

import pytest

from lengthwise import features, registry
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policy import RoutingPolicy, SchedulingPolicy, Score
from lengthwise.provider import Provider

ENTRIES = [(kind, name) for kind in registry.TABLES for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_loads(kind: str, name: str) -> None:
    thing = registry.load(kind, name)
    wanted = {"policy": SchedulingPolicy, "router": RoutingPolicy, "provider": Provider}
    assert isinstance(thing, wanted.get(kind, type))


@pytest.mark.parametrize("kind", registry.TABLES)
def test_an_unknown_name_lists_the_allowed_and_the_nearest(kind: str) -> None:
    first = registry.names(kind)[0]
    with pytest.raises(UnknownNameError, match=f"did you mean '{first}'") as caught:
        registry.load(kind, f"{first}x")
    assert all(name in str(caught.value) for name in registry.names(kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", features.FEATURES)
def test_every_feature_says_its_unit_and_meaning(name: str) -> None:
    feature = features.get(name)
    assert feature.unit and feature.meaning and feature.name == name


def test_a_function_s_signature_is_its_declaration() -> None:
    def mine(now_s: float, arrival_s: float, *, weight: float = 2.0, levels: int = 3) -> float:
        return weight * (now_s - arrival_s) + levels

    score = Score.from_function(mine)
    assert score.features == ("now_s", "arrival_s")
    assert score.tunables == {"weight": 2.0, "levels": 3}
    assert score.changes == {"clock"}
    assert score(5.0, 2.0) == 9.0
    assert score.with_tunables({"weight": 1})(5.0, 2.0) == 6.0
    assert score.evaluate({"arrival_s": 2.0, "now_s": 5.0, "prompt_tokens": 7}) == 9.0


def test_a_bad_signature_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"'output_tokens'"):
        Score.from_function(lambda output_tokens: output_tokens)
    with pytest.raises(UnknownNameError, match="did you mean 'predicted_tokens'"):
        Score.from_function(lambda predicted_token: predicted_token)
    with pytest.raises(InputError, match=r"takes \*values"):
        Score.from_function(lambda *values: values[0])
    with pytest.raises(InputError, match="needs a default"):
        Score.from_function(lambda now_s, *, mode="fast": now_s)
    score = registry.load("policy", "mlfq").score
    with pytest.raises(UnknownNameError, match="did you mean 'quantum'"):
        score.with_tunables({"quantums": 3})
    with pytest.raises(InputError, match=r"quantum takes int, not 2\.5"):
        score.with_tunables({"quantum": 2.5})
