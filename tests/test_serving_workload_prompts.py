"""The prompt generator: how far answer lengths can be predicted, and how far they can't."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from lengthwise.errors import InputError
from lengthwise.serving.workload import Prompts, generate_prompts
from lengthwise.serving.workload.words import CODE_TASKS, PLACES, THINGS, TOPICS


def tau(first: np.ndarray, second: np.ndarray) -> float:
    return float(kendalltau(first, second).statistic)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return generate_prompts(10_000, seed=1)


def test_two_samples_agree_as_two_of_a_real_model_do(prompts: Prompts) -> None:
    """Fu et al. 2024: a second sample reaches a Kendall tau of 0.74 on ShareGPT."""
    second = generate_prompts(10_000, seed=1, sample=1)
    np.testing.assert_array_equal(second.prompt, prompts.prompt)
    assert tau(prompts.output_tokens, second.output_tokens) == pytest.approx(0.74, abs=0.03)


@pytest.mark.parametrize("ceiling", [0.4, 0.6, 0.9, 1.0])
def test_the_ceiling_can_be_chosen(ceiling: float) -> None:
    first, second = (
        generate_prompts(4_000, seed=2, ceiling=ceiling, sample=sample).output_tokens
        for sample in range(2)
    )
    assert tau(first, second) == pytest.approx(ceiling, abs=0.04)


def test_a_text_model_predicts_and_the_prompts_length_does_not(prompts: Prompts) -> None:
    train, test = prompts.split("train"), prompts.split("test")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = Ridge().fit(words.fit_transform(train.prompt), np.log(train.output_tokens))
    predicted = model.predict(words.transform(test.prompt))
    assert 0.5 < tau(predicted, test.output_tokens) < 0.65
    assert abs(tau(test.prompt_tokens, test.output_tokens)) < 0.2


def test_lengths_spread_like_those_of_chats(prompts: Prompts) -> None:
    """ShareGPT's and LMSYS-Chat's answers: means of 208-323, p99 of 855-996 tokens."""
    output = prompts.output_tokens
    assert output.min() >= 1
    assert 200 < output.mean() < 450
    assert 100 < np.median(output) < 300
    assert np.quantile(output, 0.1) < 30
    assert np.quantile(output, 0.95) > 800
    assert 20 < prompts.prompt_tokens.mean() < 100
    assert prompts.censored.mean() < 0.02
    assert (output[prompts.censored] == 4096).all()


def test_prompts_are_many_and_made_of_the_words() -> None:
    prompts = generate_prompts(30_000, seed=3)
    assert len(set(prompts.prompt)) > 25_000
    text = "\n".join(prompts.prompt)
    for vocabulary in (TOPICS, PLACES, THINGS, [task for task, _ in CODE_TASKS]):
        assert len(set(vocabulary)) == len(vocabulary)
        assert all(word in text for word in vocabulary)
    assert "  " not in text
    assert ".." not in text


def test_what_is_asked_for_shows_in_the_answers(prompts: Prompts) -> None:
    def median(words: str) -> float:
        chosen = [words in prompt for prompt in prompts.prompt]
        assert sum(chosen) > 20
        return float(np.median(prompts.output_tokens[chosen]))

    assert median("One word") < 10
    assert median("in one sentence") < 80
    assert median("yes or no") < 20
    assert median("unit tests") > median("Only show the code") > 80
    assert median("1000-word story") > 2 * median("200-word story")
    assert median("haiku") < 50


def test_seeds_samples_and_prefixes() -> None:
    first = generate_prompts(100, seed=5)
    longer = generate_prompts(200, seed=5)
    np.testing.assert_array_equal(longer.prompt[:100], first.prompt)
    assert list(generate_prompts(100, seed=6).prompt) != list(first.prompt)


def test_other_processes_generate_the_same() -> None:
    """Nothing depends on Python's randomised hashes of strings."""
    code = (
        "from lengthwise.serving.workload import generate_prompts as g; p = g(50, 9);"
        "print(repr((list(p.prompt), p.output_tokens.tolist())))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1


def test_bad_numbers() -> None:
    with pytest.raises(InputError, match="must be 1 or more, not 0"):
        generate_prompts(0)
    for ceiling in (0.0, 1.5, -1.0):
        with pytest.raises(InputError, match="ceiling must be above 0 and at most 1"):
            generate_prompts(5, ceiling=ceiling)
