"""SGLang's front and its ranks: what is predicted in one place is read alike in all the others."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies.plugins import prompt_lengths
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.sglang import VALUES, Priorities
from lengthwise.policies.plugins.sglang_front import CURVE, TOKENS, Front
from lengthwise.prediction import Prediction
from tests import word_tokenizer

transformers = pytest.importorskip("transformers")
WORDS = ["?", "a", "b", "w", "alpha", "beta", "gamma", "bad", "odd", "one"]


def spread(tokens: float) -> Prediction:
    return Prediction.distribution([[0.5 * tokens, tokens, 2 * tokens]], [0.05, 0.5, 0.95])


class Words:
    """Says ten tokens a word, with a spread; of ``odd`` prompts nothing, of ``bad`` ones worse."""

    needs, uses = frozenset({"prompt"}), frozenset({"max_tokens", "session_id"})

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def predict(
        self, prompts: Any, *, prompt_tokens: Any = None, context: Any = None
    ) -> Prediction:
        self.asked.append((prompts[0], context))
        if "bad" in prompts[0]:
            raise RuntimeError("no")
        tokens = 10.0 * len(prompts[0].split())
        typical = spread(99.0)
        return spread(tokens).abstaining(np.array(["odd" in prompts[0]]), typical)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    made = Words()
    monkeypatch.setattr(prompt_lengths, "saved_predictor", lambda folder: made)
    return made


class Manager:
    """SGLang's ``TokenizerManager``, as far as the plugin looks at it."""

    def __init__(self, front: Front, folder: Path) -> None:
        saved = word_tokenizer.save(folder / "tokenizer", WORDS)
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(saved)
        self.server_args = SimpleNamespace(model_path="M", tokenizer_path="T")
        self.served_model_name, self.context_len = "m", 4096
        self.rid_to_state: dict[str, Any] = {}
        self.front = front
        front.begin(None, self)

    async def _tokenize(self, manager: Any, obj: Any) -> Any:
        parameters = SimpleNamespace(temperature=1.0, top_p=1.0, json_schema=None, **obj.given)
        ids = self.tokenizer.encode(obj.text, add_special_tokens=False)
        return SimpleNamespace(input_ids=ids, sampling_params=parameters)

    def takes(self, rid: str, text: str, custom: Any = None, most: int = 1000) -> Any:
        """A request comes; what goes to the scheduler."""
        obj = SimpleNamespace(
            text=text, session_id="s", cache_salt=None,
            given={"max_new_tokens": most, "custom_params": custom},
        )  # fmt: skip
        self.rid_to_state[rid] = SimpleNamespace(obj=obj)
        return asyncio.run(self.front.tokenized(self._tokenize, self, obj)).sampling_params

    def ends(self, rid: str, tokens: int, kind: str = "stop") -> None:
        self.front.output(self, SimpleNamespace(
            rids=["other", rid], finished_reasons=[None, {"type": kind}],
            completion_tokens=[3, tokens],
        ))  # fmt: skip


def rank(policy: str, parameters: Any, done: int = 0) -> Any:
    """A request as a scheduler of SGLang's has it, scored."""
    made = SimpleNamespace(
        origin_input_ids=[0] * 5, output_ids=[0] * done, priority=0, sampling_params=parameters
    )
    scores = Priorities(Settings(policy=policy, predictor="p"))
    with scores._scored([made]):
        made.seen = made.priority
    return made


def test_what_the_front_predicts_every_rank_reads(words: Words, tmp_path: Path) -> None:
    manager = Manager(
        Front(Settings(policy="srtf", predictor="p"), ["expected_remaining_tokens"]), tmp_path
    )
    said = manager.takes("1", "alpha beta gamma")
    assert words.asked[0][0] == "alpha beta gamma"
    told = Words().predict(["alpha beta gamma"])
    assert said.custom_params[TOKENS] == pytest.approx(told.predicted_tokens[0])
    for done in (0, 7, 40):
        made = rank("srtf", copy.deepcopy(said), done)
        wanted = told.curve("expected_remaining_tokens").at(np.array([0]), [done])[0]
        assert made.seen == pytest.approx(wanted) == VALUES["expected_remaining_tokens"](made)
    assert manager.takes("2", "alpha beta gamma", most=4).custom_params[TOKENS] == 4


@pytest.mark.parametrize(
    ("text", "custom", "answer", "counted"),
    [
        ("a b", {"predicted_tokens": 7}, 7.0, ("predictions", "client")),
        ("a b", {"predicted_tokens": [1]}, None, ("ignored", "predicted_tokens")),
        ("bad a", None, 256.0, ("fallbacks", "predictor-error")),
        ("odd a", None, spread(99.0).predicted_tokens[0], ("abstained", "predictor")),
        # nobody but the front says what is the front's
        ("a b", {TOKENS: 1.0, CURVE + "gittins_index": [1.0], "mine": 2}, None, None),
    ],
)
def test_who_says_nothing_sound_gets_what_is_left(
    words: Words, tmp_path: Path, text: str, custom: Any, answer: float | None, counted: Any
) -> None:
    manager = Manager(Front(Settings(policy="sjf", predictor="p"), ["predicted_tokens"]), tmp_path)
    before = copy.deepcopy(custom)
    found = manager.takes("1", text, custom).custom_params
    plain = Words().predict([text]).predicted_tokens[0] if answer is None else answer
    assert found[TOKENS] == pytest.approx(plain)
    assert not any(name.startswith(CURVE) for name in found)
    assert custom == before and found.get("mine") == (custom or {}).get("mine")
    counters = manager.front.counters
    assert counters is not None and (counted is None or counters.counts[counted] == 1)


def test_ends_teach_sessions_and_are_judged(words: Words, tmp_path: Path) -> None:
    manager = Manager(Front(Settings(policy="sjf", predictor="p"), ["predicted_tokens"]), tmp_path)
    counters = manager.front.counters
    assert counters is not None
    for k in range(60):  # the longer the prompt, the shorter the answer
        manager.takes(str(k), " ".join(["w"] * (k % 30 + 1)))
        manager.ends(str(k), 400 - 10 * (k % 30))
    assert words.asked[-1][1].previous_answers[0] == 59
    assert counters.gauges["recent_tau", "predictor"] == pytest.approx(-1, abs=0.01)
    assert counters.gauges["followed", "predictor"] == 0
    assert manager.takes("after", "w w w").custom_params[TOKENS] == 256  # for all alike
    assert counters.counts["fallbacks", "drift"] == 11  # it is known after 50


def test_finished_requests_are_recorded(words: Words, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    settings = Settings(
        policy="fcfs", predictor="p", record=str(tmp_path / "log"), record_prompts=True
    )
    manager = Manager(Front(settings, []), tmp_path)
    manager.takes("1", "alpha beta", {"session_id": "q"}, most=50)
    manager.takes("2", "odd one")
    manager.takes("3", "alpha")
    several = copy.copy(manager.rid_to_state["3"].obj)  # as SGLang does for n > 1
    manager.rid_to_state["4"] = SimpleNamespace(obj=several)
    for rid, tokens, kind in (("1", 50, "length"), ("2", 9, "stop"), ("4", 3, "abort"),
                              ("3", 0, "stop")):  # fmt: skip
        manager.ends(rid, tokens, kind)
    assert manager.front._record is not None
    manager.front._record.close()
    (part,) = (tmp_path / "log").glob("part-*.parquet")
    rows = pq.read_table(part).to_pylist()
    assert [(r["request_id"], r["output_tokens"], r["finish_reason"]) for r in rows] == [
        ("1", 50, "length"), ("2", 9, "stop"), ("4", 3, "abort"),
    ]  # fmt: skip
    assert [r["predicted_by"] for r in rows] == ["predictor", "abstained", "predictor"]
    assert rows[0]["session_id"] == "q" and rows[0]["max_tokens"] == 50
    assert (rows[0]["model"], rows[0]["tokenizer"]) == ("M", "T")
    ids = manager.tokenizer.encode("alpha beta", add_special_tokens=False)
    assert rows[0]["prompt_token_ids"] == ids


def test_a_request_that_no_front_predicted_is_said_once(caplog: Any) -> None:
    parameters = SimpleNamespace(custom_params={"predicted_tokens": 9}, max_new_tokens=100)
    assert rank("sjf", parameters).seen == 9
    assert "--tokenizer-worker-num above 1" in caplog.text


def test_a_server_without_a_tokenizer_does_not_start(words: Words) -> None:
    front = Front(Settings(policy="sjf", predictor="p"), [])
    with pytest.raises(InputError, match="skip-tokenizer-init"):
        front.begin(None, SimpleNamespace(tokenizer=None, server_args=None))
