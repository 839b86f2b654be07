"""Policies in transformers' continuous batching: a real engine, a tiny random model, on the CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")

from lengthwise.errors import InputError  # noqa: E402
from lengthwise.policies.plugins.transformers import register  # noqa: E402
from lengthwise.policy import Guard  # noqa: E402
from lengthwise.prediction import Prediction  # noqa: E402

PROMPTS = [[(7 * i + j) % 100 + 3 for j in range(4 + i)] for i in range(6)]
OUTPUTS = [20, 3, 11, 7, 15, 5]
BY_PROMPT = dict(zip(map(len, PROMPTS), OUTPUTS, strict=True))


def exact(prompts: list[list[int]]) -> list[float]:
    return [BY_PROMPT[len(prompt)] for prompt in prompts]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def serve(model: Any, scheduler: str, seats: int = 1) -> tuple[dict[str, list[int]], list[int]]:
    """The tokens of each request, and the order in which they finished."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    manager = model.init_continuous_batching(
        generation_config=transformers.GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            scheduler_type=scheduler, num_blocks=64, page_size=16, max_batch_tokens=64,
            max_requests_per_batch=seats, use_cuda_graph=False,
        ),
    )  # fmt: skip
    for index, (prompt, output) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        manager.add_request(prompt, request_id=str(index), max_new_tokens=output)
    manager.start()
    tokens: dict[str, list[int]] = {}
    deadline = time.monotonic() + 120
    while len(tokens) < len(PROMPTS) and time.monotonic() < deadline:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            assert result.request_id not in tokens
            tokens[result.request_id] = list(result.generated_tokens)
    manager.stop(block=True)
    return tokens, [int(i) for i in tokens]


@pytest.fixture(scope="module")
def stock(model: Any) -> tuple[dict[str, list[int]], list[int]]:
    return serve(model, "fifo")


def test_stock_is_first_come_first_served(stock: tuple[dict[str, list[int]], list[int]]) -> None:
    assert stock[1] == [0, 1, 2, 3, 4, 5]
    assert [len(tokens) for tokens in stock[0].values()] == OUTPUTS


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("fcfs", [0, 1, 2, 3, 4, 5]),
        ("sjf", [1, 5, 3, 2, 4, 0]),
        ("srtf", [1, 5, 3, 2, 4, 0]),
        # in turn for 4 tokens; the last, tied, keeps its seat and ends; then by arrival for 8 more:
        # request 0 gives way, 2 and 3 end, 4 reaches the level of 0, keeps its seat and ends
        ("mlfq:quantum=4", [1, 5, 2, 3, 4, 0]),
    ],
)
def test_every_policy_gives_the_same_tokens_in_its_own_order(
    model: Any,
    stock: tuple[dict[str, list[int]], list[int]],
    policy: str,
    order: list[int],
) -> None:
    register(policy, predict=exact, guard=0)
    tokens, finished = serve(model, "lengthwise")
    assert tokens == stock[0]
    assert finished == order


def outlived(prompts: list[list[int]]) -> Prediction:
    """Of 3 or of 40 tokens; request 2 says 6."""
    lengths = [[6.0, 6.0] if len(prompt) == 6 else [3.0, 40.0] for prompt in prompts]
    return Prediction.distribution(lengths, [0.5, 0.9])


def test_a_distribution_is_asked_anew_with_every_token(
    model: Any, stock: tuple[dict[str, list[int]], list[int]], tmp_path: Path
) -> None:
    """The index of 3 or 40 tokens begins at 4.3 and passes 6 as the 3 are outlived.

    Requests 1 and 5 may have 3 and 5 tokens only, and end first. Requests 0, 3 and 4 begin before
    request 2; 0 and 4 pass its 6 and give way, while 3, which may have but 7 tokens, never does.
    """
    (tmp_path / "gittins.py").write_text("def score(gittins_index):\n    return gittins_index\n")
    policy = f"{tmp_path / 'gittins.py'}:score+preempt:mode=recompute,protect_after=1e9"
    register(policy, predict=outlived, guard=0)
    tokens, finished = serve(model, "lengthwise")
    assert tokens == stock[0]
    assert finished == [1, 5, 3, 2, 4, 0]
    register(policy, predict=lambda prompts: outlived(prompts).predicted_tokens, guard=0)
    assert serve(model, "lengthwise")[1][:4] == [1, 5, 2, 3]  # 14 is never less than 6


def test_several_seats_give_the_same_tokens(
    model: Any, stock: tuple[dict[str, list[int]], list[int]]
) -> None:
    register("mlfq:quantum=2", guard=0)
    assert serve(model, "lengthwise", seats=3)[0] == stock[0]


def test_a_failing_predictor_means_fcfs(model: Any) -> None:
    def broken(prompts: list[list[int]]) -> list[float]:
        raise RuntimeError("no")

    register("sjf", predict=broken)
    assert serve(model, "lengthwise")[1] == [0, 1, 2, 3, 4, 5]


def test_one_failing_prediction_keeps_its_place_in_line(model: Any) -> None:
    register(
        "sjf", predict=lambda prompts: [float("nan")] if len(prompts[0]) == 4 else exact(prompts)
    )
    assert serve(model, "lengthwise")[1] == [0, 1, 5, 3, 2, 4]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("srft", "did you mean 'srtf'"),
        ("priority", "transformers can.t tell|transformers lacks"),
        ("srtf+preempt:mode=swap", "no swapping"),
        ("sjf+admit:reserve=1", "no .admit"),
    ],
)
def test_what_can_t_work_is_refused_by_name(policy: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        register(policy)


@pytest.mark.parametrize(
    ("policy", "given", "rule"),
    [
        ("srtf", {}, Guard(1.5, 0.5)),  # on, as in vLLM
        ("srtf", {"guard": 2, "guard_floor_s": 1}, Guard(2, 1)),
        ("srtf", {"guard": 0}, Guard(0.0, 0.5)),
        ("srtf+guard:ratio=0", {}, Guard(0.0, 0.5)),
        ("srtf+guard:ratio=3", {"guard": 0}, Guard(3.0, 0.5)),  # the policy is asked first
    ],
)
def test_the_guard_is_the_policy_s_or_else_the_one_given(
    policy: str, given: dict[str, Any], rule: Guard
) -> None:
    assert register(policy, **given).rule == rule


def test_its_own_schedulers_are_not_replaced() -> None:
    with pytest.raises(InputError, match="transformers' own"):
        register("sjf", name="fifo")
