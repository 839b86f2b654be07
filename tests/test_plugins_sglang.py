"""SGLang's front and its ranks: what is predicted in one place is read alike in all the others."""

from __future__ import annotations

import array
import asyncio
import copy
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies.plugins import prompt_lengths
from lengthwise.policies.plugins.calls import Call
from lengthwise.policies.plugins.prompt_lengths import Expected
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.sglang import VALUES, Priorities
from lengthwise.policies.plugins.sglang_front import CURVE, TOKENS, Front, Noted, _read, _row
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


# The front, by hand


def front_of(words: Words, tmp_path: Path, *features: str, **settings: Any) -> Manager:
    return Manager(Front(Settings(**{"policy": "sjf", **settings}), features), tmp_path)


def sent(custom: Any = None, most: Any = 50, **more: Any) -> Any:
    parameters = {"max_new_tokens": most, "custom_params": custom, "temperature": 0.5,
                  "top_p": 0.9, "json_schema": None, **more}  # fmt: skip
    return SimpleNamespace(input_ids=[4, 5, 6], sampling_params=SimpleNamespace(**parameters))


def test_what_sglang_knows_of_a_request_by_hand(words: Words, tmp_path: Path) -> None:
    manager = front_of(words, tmp_path, predictor="p")
    front = manager.front
    obj = SimpleNamespace(session_id="s", cache_salt="salt")
    call = front._call(manager, obj, sent({"predicted_tokens": "7", "tenant": "t", "tools": 1}))
    assert (call.text, call.asked, call.told, call.limit) == ("", "", 7.0, 50.0)
    assert call.tokens == [4, 5, 6]
    assert call.known == {
        "session_id": "s", "tenant": "t", "model": "m", "temperature": 0.5, "top_p": 0.9,
        "max_tokens": 50.0, "tools": 1.0, "json_schema": 0.0,
    }  # fmt: skip
    # its own word on a session goes before what SGLang calls so
    named = front._call(manager, obj, sent({"session_id": "q", "tools": 0}, json_schema="{}"))
    assert named.known["session_id"] == "q" and named.known["json_schema"] == 1.0
    assert named.known["tools"] == 0.0 and named.told is None
    salted = front._call(manager, SimpleNamespace(cache_salt="salt"), sent("no object"))
    assert salted.known["session_id"] == "salt" and "tools" not in salted.known
    # what may come is what was asked for, and what the context holds beside the prompt
    for most, room, limit in ((50, 4096, 50), (None, 4096, 4093), (50, 13, 10), (50, 3, 1),
                              (0, 4096, 1), (None, None, math.inf)):  # fmt: skip
        manager.context_len = room  # type: ignore[assignment]
        assert front._call(manager, obj, sent(most=most)).limit == limit
    made = sent(most=50)
    made.input_ids = None  # embeddings
    manager.context_len = 10
    assert (
        front._call(manager, obj, made).limit == 50
        and front._call(manager, obj, made).tokens is None
    )
    assert front.counters is not None and not front.counters.counts
    assert front._call(manager, obj, sent({"predicted_tokens": -3})).told is None
    assert front.counters.counts == {("ignored", "predicted_tokens"): 1}
    wary = front_of(words, tmp_path, predictor="p", client_lengths=False)
    assert wary.front._call(wary, obj, sent({"predicted_tokens": 7})).told is None
    assert wary.front.counters is not None and not wary.front.counters.counts


def test_a_row_of_sglang_s_record_by_hand() -> None:
    call = Call("", "", None, 50.0, {"session_id": "s", "temperature": 0.5}, [4, 5])
    expected = Expected(2.0, 9.0, call.known, "predictor", 8.5)
    row = _row(call, expected)
    assert abs(row.pop("arrival_s") - time.time()) < 60
    assert {name: value for name, value in row.items() if value is not None} == {
        "prompt_token_ids": array.array("i", [4, 5]), "prompt_tokens": 2, "predicted_tokens": 8.5,
        "predicted_by": "predictor", "max_tokens": 50, "session_id": "s", "temperature": 0.5,
    }  # fmt: skip
    assert _row(call, expected._replace(source="default"))["predicted_by"] == "abstained"
    nobody = _row(call._replace(limit=math.inf, tokens=None), Expected(2.0, 9.0))
    assert nobody["predicted_tokens"] is nobody["predicted_by"] is nobody["max_tokens"] is None
    assert nobody["prompt_token_ids"] is None
    assert _row(call._replace(limit=1e300), expected)["max_tokens"] == 2**63 - 1


def test_a_prompt_is_read_of_its_tokens_or_fails() -> None:
    reader: Any = SimpleNamespace(
        served=lambda tokens: SimpleNamespace(text=f"<{len(tokens)}>", told={"tools": 1.0})
    )
    read = _read(Call("", "", known={"model": "m"}, tokens=[1, 2]), reader)
    assert read.asked == "<2>" and read.known == {"model": "m", "tools": 1.0}
    for call, by in ((Call("", ""), reader), (Call("", "", tokens=[]), reader),
                     (Call("", "", tokens=[1]), None)):  # fmt: skip
        with pytest.raises(ValueError, match="a prompt without tokens"):
            _read(call, by)


def test_requests_are_noted_once_and_only_those_that_generate(words: Words, tmp_path: Path) -> None:
    manager = front_of(words, tmp_path, "expected_remaining_tokens", predictor="p")
    front, client_s = manager.front, {"mine": 1}

    def note(obj: Any, made: Any) -> Any:
        asyncio.run(front._note(manager, obj, made))
        return made

    obj = SimpleNamespace(session_id=None)
    made = note(obj, sent(client_s))
    told = made.sampling_params.custom_params
    assert set(told) == {"mine", TOKENS, CURVE + "expected_remaining_tokens"}
    assert client_s == {"mine": 1} and obj.lengthwise.expected.answer == told[TOKENS]
    assert all(type(value) is float for value in told[CURVE + "expected_remaining_tokens"])
    again = note(obj, sent())  # another answer to the same
    assert again.sampling_params.custom_params is None and len(words.asked) == 1
    for generates_nothing in (SimpleNamespace(input_ids=[1]), SimpleNamespace(
            input_ids=[1], sampling_params=SimpleNamespace())):  # fmt: skip
        other = SimpleNamespace()
        note(other, generates_nothing)
        assert not hasattr(other, "lengthwise")
    assert front.counters is not None
    counts: Any = front.counters.counts
    assert not counts["fallbacks", "plugin"]
    broken = SimpleNamespace(
        input_ids=[1], sampling_params=SimpleNamespace(custom_params=None, max_new_tokens=5)
    )
    note(SimpleNamespace(), broken)  # SGLang's requests have a temperature
    assert counts["fallbacks", "plugin"] == 1
    # without a predictor nothing is told to the ranks
    quiet = front_of(words, tmp_path, record=str(tmp_path / "log"), policy="fcfs")
    made = sent({"predicted_tokens": 9})
    obj = SimpleNamespace()
    asyncio.run(quiet.front._note(quiet, obj, made))
    assert made.sampling_params.custom_params == {"predicted_tokens": 9}
    assert obj.lengthwise.expected.answer == 9.0 and obj.lengthwise.row["predicted_by"] == "client"
    assert quiet.front._record is not None
    quiet.front._record.close()
    early = Front(Settings(policy="sjf", predictor="p"), [])
    early.counters = quiet.front.counters
    obj = SimpleNamespace()
    asyncio.run(early._note(quiet, obj, sent()))  # before the server has begun
    assert not hasattr(obj, "lengthwise")


def test_a_batch_is_noted_one_by_one_and_goes_on_as_it_was(words: Words, tmp_path: Path) -> None:
    manager = front_of(words, tmp_path, predictor="p")
    objs = [SimpleNamespace(), SimpleNamespace()]
    made = [sent(most=3), sent(most=1000)]
    asked: list[Any] = []

    async def original(*given: Any, **more: Any) -> Any:
        asked.append((given, more))
        return made

    found = asyncio.run(manager.front.tokenized_batch(original, manager, 2, objs, "a", b="c"))
    assert found is made and asked == [((manager, 2, objs, "a"), {"b": "c"})]
    told = [one.sampling_params.custom_params[TOKENS] for one in made]
    assert told[0] == 3.0 < told[1] and [hasattr(one, "lengthwise") for one in objs] == [True] * 2

    async def single(*given: Any, **more: Any) -> Any:
        asked.append((given, more))
        return made[0]

    obj = SimpleNamespace()
    assert asyncio.run(manager.front.tokenized(single, manager, obj, "a", b="c")) is made[0]
    assert asked[1] == ((manager, obj, "a"), {"b": "c"}) and hasattr(obj, "lengthwise")


def test_how_answers_end_by_hand(words: Words, tmp_path: Path, caplog: Any) -> None:
    manager = front_of(words, tmp_path, record=str(tmp_path / "log"), policy="fcfs")
    front = manager.front
    learned: list[Any] = []
    rows: list[Any] = []
    assert front._lengths is not None and front._record is not None
    front._lengths.ended = lambda *heard: learned.append(heard)  # type: ignore[method-assign]
    front._record.put = rows.append  # type: ignore[assignment,method-assign]
    noted = Noted(Expected(1.0, 2.0), {"prompt_tokens": 1})
    for reason, tokens, written, heard in (
        ({"type": "stop"}, 1, "stop", True), ({"type": "length"}, 5, "length", True),
        ({"type": "abort"}, 5, "abort", False), ({"type": "other"}, 5, "error", False),
        ({}, 5, "error", False), ("stop", 5, "error", False), ({"type": "stop"}, 0, None, False),
    ):  # fmt: skip
        learned.clear()
        rows.clear()
        received = SimpleNamespace(completion_tokens=[9, tokens])
        front._ended(noted, "r", reason, received, 1)
        assert learned == ([(noted.expected, tokens)] if heard else [])
        assert [row["finish_reason"] for row in rows] == ([written] if written else [])
        if rows:
            assert rows[0] == {"prompt_tokens": 1, "request_id": "r", "output_tokens": tokens,
                               "finish_reason": written}  # fmt: skip
    # strangers, requests under way, and those that nobody noted end without a word
    manager.rid_to_state["a"] = SimpleNamespace(obj=SimpleNamespace())
    manager.rid_to_state["b"] = SimpleNamespace()
    manager.rid_to_state["c"] = SimpleNamespace(obj=SimpleNamespace(lengthwise=noted))
    rows.clear()
    front.output(manager, SimpleNamespace(
        rids=["a", "b", "gone", "c", "c"], finished_reasons=[{"type": "stop"}] * 3 + [None] +
        [{"type": "stop"}], completion_tokens=[5, 6, 7, 8, 9],
    ))  # fmt: skip
    assert [row["output_tokens"] for row in rows] == [9]
    assert front.counters is not None
    counts: Any = front.counters.counts
    assert not counts["failed_steps", "shadow"]
    front.output(manager, SimpleNamespace(rids=["c"]))  # SGLang's words may change
    assert counts["failed_steps", "shadow"] == 1
    assert "how requests end is not heard" in caplog.text
    del front._record.put
    front._record.close()
    assert manager.front._settings.record_prompts is False


def test_where_a_tokenizer_has_no_path_it_is_the_model_s(words: Words, tmp_path: Path) -> None:
    made: list[Any] = []
    for path in ("T", None):
        front = Front(Settings(policy="fcfs", record=str(tmp_path / f"{path}")), [])
        told = SimpleNamespace(model_path="M", tokenizer_path=path)
        front.begin(None, SimpleNamespace(tokenizer=None, server_args=told))
        assert front._record is not None
        made.append(front._record._part._same)
        front._record.close()
    assert made == [{"model": "M", "tokenizer": "T"}, {"model": "M", "tokenizer": "M"}]
