"""Where a predictor was not trained: it abstains, its intervals widen, and whoever asks is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval.compare import compare
from lengthwise.eval.simulate import simulate
from lengthwise.prediction import Prediction, Predictions
from lengthwise.protocols import Predictor
from lengthwise.workload import Workload

RNG = np.random.default_rng(0)
EDGES = [1.0, 50.0, 200.0, 1000.0]


def one_of_each_kind(n: int) -> list[tuple[Prediction, Prediction]]:
    """Predictions of n requests and of the one that abstained requests resemble."""
    tokens = RNG.uniform(10, 900, n)
    shares = RNG.dirichlet(np.ones(3), n)
    quantiles = np.sort(RNG.uniform(10, 900, (n, 3)), axis=1)
    return [
        (Prediction.exact(tokens), Prediction.exact([100.0])),
        (Prediction.bucketed(shares, EDGES), Prediction.bucketed([[0.2, 0.5, 0.3]], EDGES)),
        (Prediction.ranked(tokens - 400, tokens), Prediction.ranked([0.5], [100.0])),
        (
            Prediction.distribution(quantiles, [0.1, 0.5, 0.9]),
            Prediction.distribution([[20, 100, 300]], [0.1, 0.5, 0.9]),
        ),
    ]


@pytest.mark.parametrize("kind", range(4))
def test_abstained_requests_all_say_the_same_and_the_others_what_they_said(kind: int) -> None:
    said, neutral = one_of_each_kind(20)[kind]
    mask = np.arange(20) % 3 == 0
    found = said.abstaining(mask, neutral)
    assert found.kind == said.kind
    assert (found.abstained == mask).all() and said.abstained is None
    for of in ("predicted_tokens", "order"):
        assert (getattr(found, of)[mask] == getattr(neutral, of)[0]).all()
        assert (getattr(found, of)[~mask] == getattr(said, of)[~mask]).all()
    done = np.full(20, 60)
    assert (found.refresh(done)[mask] == neutral.refresh([60])[0]).all()
    some = found.select(slice(0, 4)).of_run()
    assert some.abstained is not None
    assert some.abstained.tolist() == [True, False, False, True]
    assert some.capped(np.full(4, 30)).select([0, 1]).abstained_share == 0.5


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"mask has shape \(2,\), the predictions \(3,\)"):
        Prediction.exact([1.0, 2.0, 3.0]).abstaining([True, False], Prediction.exact([1.0]))
    with pytest.raises(InputError, match="abstained has shape"):
        Predictions({"predicted_tokens": np.ones(3)}, abstained=np.ones(2, dtype=bool))


def workload(n: int = 300) -> Workload:
    return Workload(
        {
            "arrival_s": np.sort(RNG.uniform(0, 5, n)),
            "prompt_tokens": RNG.integers(5, 300, n),
            "output_tokens": RNG.integers(1, 400, n),
            "prompt": [f"prompt {i}" for i in range(n)],
        }
    )


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("kind", range(4))
def test_sjf_of_abstained_requests_is_fcfs_to_the_bit(kind: int, backend: Any) -> None:
    drawn = workload()
    said, neutral = one_of_each_kind(len(drawn))[kind]
    predicted = said.abstaining(np.ones(len(drawn), dtype=bool), neutral).of_run()
    engine = lw.Engine(max_num_seqs=8, max_num_batched_tokens=256)
    runs = [
        simulate(drawn, policy, engine=engine, predicted_tokens=given, backend=backend).requests
        for policy, given in (("sjf", predicted), ("fcfs", None))
    ]
    times = ["scheduled_s", "first_token_s", "finish_s"]
    assert runs[0][times].equals(runs[1][times])


class HalfBlind:
    """Knows the true length of every other request."""

    needs = frozenset({"output_tokens"})

    def fit(self, *args: Any, **kwargs: Any) -> HalfBlind:
        return self

    def predict(self, prompts: Any, *, output_tokens: Any = None, **given: Any) -> Prediction:
        mask = np.arange(len(output_tokens)) % 2 == 0
        return Prediction.exact(output_tokens).abstaining(mask, Prediction.exact([200.0]))

    def save(self, folder: Any) -> None:
        raise NotImplementedError


def test_simulate_and_compare_say_once_how_many_requests_were_not_ordered() -> None:
    blind = HalfBlind()
    assert isinstance(blind, Predictor)
    drawn = workload(60)
    found = simulate(drawn, "sjf", blind)
    assert len(found.notices) == 1
    assert found.notices[0].startswith("halfblind abstained from 50% of the requests")
    assert found.config["abstained_share"] == 0.5
    assert simulate(drawn, "sjf", "oracle").notices == ()
    table = compare(drawn, ["sjf", "srtf"], [blind], seeds=2)
    assert [line for line in table.notices if "abstained" in line] == list(found.notices)
