"""Where a predictor was not trained: it abstains, its intervals widen, and whoever asks is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

import lengthwise as lw
from lengthwise.errors import InputError
from lengthwise.eval.compare import compare
from lengthwise.eval.simulate import simulate
from lengthwise.prediction import Prediction, Predictions
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.novelty import FEWEST
from lengthwise.predictors.predict import predict
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


WORDS = {
    "near": "river stone garden window letter winter market village bread lamp".split(),
    "far": "kernel socket mutex thread buffer packet daemon cache cursor schema".split(),
}


def prompts(kind: str, n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Prompts whose number says how long their answers are; far ones say the contrary, in code."""
    rng = np.random.default_rng(seed)
    asked = rng.integers(1, 40, n)
    noise = rng.normal(0, 0.3, n)
    texts, lengths = [], []
    for count, off in zip(asked, noise, strict=True):
        words = " ".join(rng.choice(WORDS[kind], 8))
        if kind == "near":
            texts.append(f"Write {count} sentences on the {words}.")
            lengths.append(20 * count * np.exp(off))
        else:
            texts.append(f"def f(x):\n    {words} = {{{count}: x;}};\n" * 4 + f"assert f({count})")
            lengths.append(900 / count * np.exp(off))
    return texts, np.maximum(np.round(lengths), 1)


@pytest.fixture(scope="module", params=["exact", "bucket", "rank", "quantile"])
def ridge(request: pytest.FixtureRequest) -> Any:
    return make_predictor("ridge", target=request.param).fit(*prompts("near", 400, 0))


def test_it_abstains_where_it_was_not_trained_and_hardly_elsewhere(ridge: Any) -> None:
    near, far = prompts("near", 400, 1), prompts("far", 400, 1)
    own = ridge.predict(near[0])
    assert own.abstained.mean() < 0.08
    plain = ridge.target_.prediction(ridge._raw(near[0]))  # what it says without abstaining
    assert (
        kendalltau(own.order, near[1]).statistic > 0.95 * kendalltau(plain.order, near[1]).statistic
    )
    said = ridge.predict(far[0])
    assert said.abstained.all()
    assert len(set(said.order)) == 1
    typical = np.median(prompts("near", 400, 0)[1])
    assert said.predicted_tokens == pytest.approx(typical, rel=1e-9)


def test_intervals_cover_what_they_name_in_source_and_widen_out_of_it(ridge: Any) -> None:
    near, far = prompts("near", 1000, 2), prompts("far", 400, 2)
    said = ridge.predict(near[0])
    for level in (0.5, 0.8, 0.9):
        low, high = said.interval(level)
        covered = ((near[1] >= low) & (near[1] <= high)).mean()
        assert covered > level - 0.07
        assert covered < level + 0.07 or ridge.target == "bucket"  # which are coarse
    low, high = ridge.predict(far[0]).interval(0.9)
    assert ((far[1] >= low) & (far[1] <= high)).mean() > 0.85
    assert np.median(high / low) > 2 * np.median(np.divide(*said.interval(0.9)[::-1]))


def test_an_interval_needs_a_level_and_a_spread(ridge: Any) -> None:
    with pytest.raises(InputError, match="level must lie in"):
        ridge.predict(["a prompt"]).interval(90)
    with pytest.raises(InputError, match="no interval is known"):
        Prediction.exact([3.0]).interval()


def test_saved_and_loaded_it_abstains_from_the_same(ridge: Any, tmp_path: Path) -> None:
    ridge.save(tmp_path / "p")
    asked = prompts("near", 30, 3)[0] + prompts("far", 30, 3)[0]
    first, again = ridge.predict(asked), load_predictor(tmp_path / "p").predict(asked)
    for name in ("abstained", "unfamiliar", "tokens"):
        assert (getattr(first, name) == getattr(again, name)).all()
    assert (first.interval()[1] == again.interval()[1]).all()


def test_a_prompt_is_judged_by_itself_and_a_stream_by_its_company(ridge: Any) -> None:
    """Prompts that each could be a training prompt, but are all alike: another workload."""
    alike = sorted(prompts("near", 3000, 4)[0], key=len)[:150]
    one_by_one = [bool(ridge.predict([text]).abstained[0]) for text in alike]
    assert one_by_one == ridge.predict(alike).abstained.tolist()
    stream = ridge.stream()
    judged = [bool(stream.predict([text]).abstained[0]) for text in alike]
    assert judged[: FEWEST - 1] == one_by_one[: FEWEST - 1]
    assert all(judged[FEWEST:]) and np.mean(one_by_one) < 0.5
    assert ridge.stream().predict(alike).abstained.tolist() == judged
    back = [bool(stream.predict([text]).abstained[0]) for text in prompts("near", 600, 5)[0]]
    assert np.mean(back[-200:]) < 0.1


def test_the_simulator_judges_requests_in_the_order_of_arrival(ridge: Any) -> None:
    asked, length = prompts("far", 120, 6)
    drawn = Workload(
        {
            "arrival_s": np.arange(120.0), "prompt": asked, "output_tokens": length.astype(int),
            "prompt_tokens": np.full(120, 20),
        }
    )  # fmt: skip
    found = predict(ridge, drawn)
    assert found is not None and found.abstained_share == 1.0
    assert len(set(found.predicted_tokens)) == 1


def asked_by_length(
    n: int, seed: int, middle: float, spread: float, slope: float
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt lengths, and answers that go with them."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(middle, spread, n)
    answers = np.exp(5 + slope * (logs - middle) + rng.normal(0, 0.5, n))
    return np.exp(logs).round() + 1, answers.round() + 1


def test_the_prompt_s_length_abstains_where_prompts_are_not_as_long(tmp_path: Path) -> None:
    asked, answers = asked_by_length(400, 0, 5, 0.5, 0.6)
    make_predictor("prompt-length").fit([], answers, prompt_tokens=asked).save(tmp_path / "p")
    fitted: Any = load_predictor(tmp_path / "p")
    for middle, spread, abstains in ((5, 0.5, False), (5.4, 0.5, True), (5, 0.15, True)):
        other, _ = asked_by_length(400, 1, middle, spread, 0)
        said = fitted.stream().predict([], prompt_tokens=other)
        assert said.abstained[100:].mean() == pytest.approx(float(abstains), abs=0.05)
        assert fitted.predict([], prompt_tokens=other).abstained is None
    typical = fitted.stream().predict([], prompt_tokens=np.full(60, 9000)).predicted_tokens[-1]
    assert typical == pytest.approx(np.median(answers))


def test_a_prompt_s_length_that_tells_nothing_orders_nothing() -> None:
    asked, answers = asked_by_length(200, 2, 5, 0.5, 0.0)
    blank: Any = make_predictor("prompt-length").fit([], answers, prompt_tokens=asked)
    assert blank.stream().predict([], prompt_tokens=asked).abstained.all()
    assert load_predictor("prompt-length").stream().predict([], prompt_tokens=asked) is not None  # type: ignore[union-attr]
