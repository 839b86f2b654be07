"""The probe on hidden states: of a tiny random model whose answers count down to their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lengthwise.errors import InputError  # noqa: E402
from lengthwise.predictors.probe import Probe, Watch, collected, prompt_state  # noqa: E402

LAYER = 1


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=48, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def counting(count: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts that name the answer's length, and answers whose tokens say what is still to come."""
    lengths = np.random.default_rng(seed).integers(4, 60, count).tolist()
    prompts = [[64 + n % 8, n, n] for n in lengths]
    return prompts, [list(range(n - 1, -1, -1)) for n in lengths]


@pytest.fixture(scope="module")
def probe(model: Any) -> Probe:
    states, left = collected(model, *counting(80, 0), layer=LAYER)
    return Probe(48, bins=12, longest=60, hidden=64).fit(states, left)


def test_it_reads_what_is_there_to_read(model: Any, probe: Probe) -> None:
    states, left = collected(model, *counting(40, 1), layer=LAYER)
    said = probe.expected(probe.probabilities(torch.tensor(states))).numpy()
    assert np.abs(said - left).mean() < 0.25 * np.abs(left.mean() - left).mean()


def test_the_hook_sees_transformers_own_hidden_states(model: Any) -> None:
    (prompt, *_), (answer, *_) = counting(1, 2)
    states, left = collected(model, [prompt], [answer], layer=LAYER, every=2)
    with torch.inference_mode():
        out = model(torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
    hidden = out.hidden_states[LAYER + 1][0]  # the first is the embedding's
    np.testing.assert_allclose(states[0], hidden[:3].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states[1:], hidden[4::2][: len(states) - 1], rtol=1e-5, atol=1e-6)
    assert left.tolist() == [len(answer), *range(len(answer) - 2, -1, -2)]


@pytest.mark.parametrize("every", [1, 4])
def test_a_watched_answer_is_refreshed_as_it_grows(model: Any, probe: Probe, every: int) -> None:
    """Fed token by token with its cache, as ``generate`` does."""
    prompts, answers = counting(6, 3)
    off, frozen = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        with Watch(model, probe, layer=LAYER, every=every) as watch, torch.inference_mode():
            out = model(torch.tensor([prompt]), use_cache=True)
            first = watch.expected_remaining_tokens[0]
            for done, token in enumerate(answer, start=1):
                out = model(torch.tensor([[token]]), past_key_values=out.past_key_values)
                left = len(answer) - done
                off.append(abs(watch.expected_remaining_tokens[0] - max(left, 1)))
                frozen.append(abs(max(first - done, 1) - max(left, 1)))
    assert np.mean(off) < 4  # a bin has 5 tokens
    assert np.mean(off) < np.mean(frozen) + 1


def test_generate_is_watched_and_not_changed(model: Any, probe: Probe) -> None:
    prompts = torch.tensor([[0, 0, 70, 30, 30], [9, 12, 66, 20, 20]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    given = {
        "input_ids": prompts, "attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8,
        "do_sample": False, "pad_token_id": 0,
    }  # fmt: skip
    plain = model.generate(**given)
    with Watch(model, probe, layer=LAYER, mask=mask) as watch:
        watched = model.generate(**given)
        assert watch.generated == 7  # the eighth was never fed back
    assert watched.tolist() == plain.tolist()
    left = watch.expected_remaining_tokens
    assert left.shape == (2,) and (left >= 1).all() and (left <= 60).all()
    model.generate(**given)
    assert watch.generated == 7  # the hook is gone


def test_padding_is_left_out_of_a_prompt_s_mean() -> None:
    hidden = torch.arange(12.0).reshape(1, 4, 3)
    mask = torch.tensor([[0, 1, 1, 0]])
    np.testing.assert_allclose(prompt_state(hidden, mask)[0], hidden[0, 1:3].mean(0))


def test_a_belief_moves_down_by_one_token_a_token() -> None:
    """Uniform within bins, so that the mean falls by 1 until the last bin is reached."""
    probe = Probe(4, bins=10, longest=100)
    belief = torch.zeros(1, 10, dtype=torch.float64)
    belief[0, 8] = 1.0
    for tokens in (1, 10, 30):
        moved = probe.after(belief.clone(), tokens)
        assert float(moved.sum()) == pytest.approx(1)
        assert float(probe.expected(moved)[0]) == pytest.approx(85 - tokens, abs=0.1)


def test_saved_and_loaded_it_says_the_same(probe: Probe, tmp_path: Path) -> None:
    probe.save(tmp_path / "probe")
    names = sorted(path.name for path in (tmp_path / "probe").iterdir())
    assert names == ["probe.json", "weights.safetensors"]
    states = torch.randn(5, 48)
    loaded = Probe.load(tmp_path / "probe")
    assert torch.equal(loaded.probabilities(states), probe.probabilities(states))
    (tmp_path / "probe" / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="holds no probe"):
        Probe.load(tmp_path / "probe")


def test_what_it_can_t_learn_from_or_look_at_is_told(model: Any, probe: Probe) -> None:
    with pytest.raises(InputError, match=r"\(n, 48\) states"):
        probe.fit(np.zeros((30, 4)), np.zeros(30))
    with pytest.raises(InputError, match="layer 9 of 3"):
        Watch(model, probe, layer=9)
    with pytest.raises(InputError, match="every 1 or more tokens, not 0"):
        Watch(model, probe, every=0)
    with pytest.raises(InputError, match="has seen no prompt"):
        _ = Watch(model, probe).expected_remaining_tokens
    with pytest.raises(InputError, match="at least as many tokens"):
        Probe(4, bins=10, longest=5)
