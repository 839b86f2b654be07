"""Chats, what is known of requests, and what is wrong with scores: each rule on its own text."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise import blame, contract, policy, served_text
from lengthwise.blame import Problem, blamed, code_of, place_of, suspects
from lengthwise.chat import Message, asked, field, flat, messages, role_of, system_hash
from lengthwise.chat_template import KNOWN, PLAIN, Template, learned, of_tokenizer
from lengthwise.context import MOST_TOKENS, Context, given
from lengthwise.errors import InputError
from lengthwise.policy import Score
from lengthwise.served_text import PromptReader, asked_texts, capped_text, messages_of, told

# What is known of requests


def test_columns_are_cleaned_and_of_one_length() -> None:
    made = Context(model=["a", 3, "", None, float("nan")], tools=[1, None, 0, True, 2.5])
    assert made.model is not None and made.model.tolist() == ["a", "3", None, None, None]
    assert made.tools is not None and made.tools[[0, 2, 3, 4]].tolist() == [1, 0, 1, 2.5]
    assert math.isnan(made.tools[1]) and len(made) == 5 and len(Context()) == 0
    assert list(made.columns) == ["model", "tools"]
    assert made.row(0) == {"model": "a", "tools": 1.0} and type(made.row(0)["tools"]) is float
    assert made.select(slice(3, None)).row(1)["tools"] == 2.5
    with pytest.raises(InputError, match=r"'tools' must be one-dimensional, not \(1, 2\)"):
        Context(tools=[[1, 2]])


def test_what_the_columns_hold_of_a_session_is_not_made_again() -> None:
    columns = {"session_id": ["s", "s"], "arrival_s": [0.0, 9e9], "output_tokens": [5, 5]}
    made = Context.of(columns)
    assert made.previous_answers is not None and made.previous_answers.tolist() == [0, 1]
    held = Context.of({**columns, "previous_tokens": [np.nan, 8.0]})
    assert held.previous_tokens is not None and held.previous_tokens[1] == 8
    assert held.previous_answers is None


def test_limits_are_of_those_who_named_one() -> None:
    assert Context(tools=[1]).limits() is None
    named = [1, 0.5, MOST_TOKENS - 1, MOST_TOKENS, MOST_TOKENS + 1, np.inf, np.nan, -3]
    limits = Context(max_tokens=named).limits()
    assert limits is not None
    assert limits.tolist() == [1, 1, MOST_TOKENS - 1, np.inf, np.inf, np.inf, np.inf, 1]
    context = Context(max_tokens=[1])
    assert given(SimpleNamespace(uses=frozenset()), context) == {"context": context}
    assert given(SimpleNamespace(uses=None), context) == {} == given(SimpleNamespace(), context)
    assert given(SimpleNamespace(uses=frozenset()), None) == {}


# Chats


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("System", "system"), ("developer", "system"), ("human", "user"), ("PROMPTER", "user"),
        ("tool", "tool"), ("ipython", "tool"), ("GPT-4", "assistant"), ("claude-2", "assistant"),
        ("o1-mini", "assistant"), ("users", None), ("somebody", None), ("", None),
    ],
)  # fmt: skip
def test_roles_by_the_names_of_others(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_messages_of_dicts_and_objects() -> None:
    given = [
        {"role": "system", "content": "s"}, {"from": "gpt", "value": "a", "role": "user"},
        SimpleNamespace(role="nobody", content="n"), {"role": 3, "content": "x"}, {},
        {"role": "tool", "content": [{"text": "p"}, {"text": ""}, {"text": 4}, "q"]},
    ]  # fmt: skip
    assert messages(given) == [
        Message("system", "s"), Message("assistant", "a"), Message("user", "n"),
        Message("user", "x"), Message("user", ""), Message("tool", "p\nq"),
    ]  # fmt: skip
    assert (flat(["a", "", "b"]), flat(b"no"), flat({"text": "x"})) == ("a\nb", "", "")


def test_the_first_field_that_is_there_and_can_be_read() -> None:
    class Odd:
        b = 2

        @property
        def a(self) -> int:
            raise RuntimeError

    assert field(Odd(), "a", "b") == 2 and field({"a": None, "b": 0}, "a", "b") == 0
    assert field({}, "a") is None is field(Odd(), "c")


def test_what_was_asked_last() -> None:
    user, answer = Message("user", "q"), Message("assistant", "a")
    assert asked([Message("user", "first"), answer, user, answer]) == "q"
    assert asked([user, Message("user", "")]) == "q"
    assert asked([Message("system", "s"), answer, Message("tool", "t")]) == "s\nt"
    assert asked([]) == "" == asked([answer])


def test_a_system_prompt_is_hashed_without_its_ends() -> None:
    chat = [Message("system", " a \n"), Message("user", "u"), Message("system", "b")]
    assert system_hash(chat) == blake2b(b"a\nb", digest_size=8).hexdigest()
    assert system_hash([Message("system", " ")]) is None is system_hash([Message("user", "u")])
    assert system_hash([Message("system", "\ud800")]) == blake2b(b"?", digest_size=8).hexdigest()


# Templates

MARKED = Template("t", (("<u>", "user"), ("<a>", "assistant"), ("<s>", "system"), ("<e>", None)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<u>q<a>", [("user", "q")]),
        ("no<u> q <e><a> a ", [("user", "q"), ("assistant", "a")]),
        ("<s>s<u>q<e>between<a>", [("system", "s"), ("user", "q")]),
        ("<u> <u>q<a>", [("user", "q")]),
        ("<u>q<e> behind", [("user", "q")]),
        ("<u>q", None),  # nothing follows the question
        ("<s>s<e><a>a<e>", None),  # nobody asks
        ("plain", None), ("", None),
    ],
)  # fmt: skip
def test_marks_begin_and_end_texts(text: str, found: list[tuple[str, str]] | None) -> None:
    assert MARKED.messages(text) == (None if found is None else [Message(*one) for one in found])


def test_a_mark_may_name_its_role() -> None:
    named = Template("t", ((r"<(x)(y)>", "user"), (r"<(user|gpt)>", ""), ("<e>", None)))
    assert named.messages("<xy>1<gpt>2<user>3<e>") == [
        Message("user", "1"), Message("assistant", "2"), Message("user", "3"),
    ]  # fmt: skip


PUBLISHED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user<|im_sep|>Q<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
    "llama-3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eom_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|end_of_text|>",
    "llama-4": "<|header_start|>system<|header_end|>S<|eot|><|header_start|>user<|header_end|>Q"
    "<|eot|><|header_start|>assistant<|header_end|>A<|eot|><|header_start|>user<|header_end|>Q2"
    "<|eot|>",
    "inst": "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s>[INST] Q2 [/INST]",
    "inst of mistral": "[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Q[/INST]A</s>[INST]Q2[/INST]",
    "gemma": "<start_of_turn>system\nS<end_of_turn><start_of_turn>user\nQ<end_of_turn>\n"
    "<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nQ2<end_of_turn>",
    "phi-3": "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|endoftext|>\n<|user|>\n"
    "Q2<|end|>",
    "harmony": "<|start|>developer<|message|>S<|end|><|start|>user<|message|>Q<|end|>"
    "<|start|>assistant<|channel|>final<|message|>A<|return|><|start|>user<|message|>Q2<|end|>"
    "<|start|>assistant",
    "deepseek": "<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>Q2<｜Assistant｜>",
    "command": "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q2<|END_OF_TURN_TOKEN|>",
    "vicuna": "A chat. USER: Q ASSISTANT: A</s> USER: Q2 ASSISTANT:",
    "alpaca": "Below.\n### Instruction:\nQ\n\n### Response:\nA\n"
    "### Instruction:\nQ2\n### Response:",
    "human": "Human: Q\n\nAssistant: A\nHuman: Q2\nAssistant:",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats_by_hand(name: str) -> None:
    found = messages_of(PUBLISHED[name])
    assert found is not None
    system = [] if name in ("deepseek", "vicuna", "alpaca", "human") else [("system", "S")]
    assert found == [*system, ("user", "Q"), ("assistant", "A"), ("user", "Q2")]
    assert {one.name for one in (*KNOWN, *PLAIN)} >= {name.split(" of ")[0]}


def rendered(
    begins: dict[str, str], ends: str, opens: str, *, head: str = "", system: bool = True
) -> Callable[[list[dict[str, str]], bool], str]:
    def render(chat: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if not system and chat[0]["role"] == "system":
            raise ValueError("no system's text")
        parts = [begins[one["role"]] + one["content"] + ends for one in chat]
        return head + "".join(parts) + (opens if add_generation_prompt else "")

    return render


FULL = {"system": "<<sys>>", "user": "<<usr>>", "assistant": "<<bot>>"}


@pytest.mark.parametrize("system", [True, False])
def test_a_template_is_learned_from_what_it_renders(system: bool) -> None:
    made = learned(rendered(FULL, "##", "<<bot>>", head="Today is Monday. ", system=system))
    assert made is not None
    text = "Today is Friday. <<usr>>Q##<<bot>>A##<<usr>>Q2##<<bot>>"
    assert made.messages(text) == [
        Message("user", "Q"), Message("assistant", "A"), Message("user", "Q2"),
    ]  # fmt: skip
    if system:
        # what stands before the first question after a system's text begins it, as does the system
        said = made.messages("Today is Monday. <<sys>>S##<<usr>>Q##<<bot>>")
        assert said == [Message("system", "S"), Message("user", "Q")]
    lengths = [len(mark) for mark, _ in made.marks]
    assert lengths == sorted(lengths, reverse=True)  # the longest are tried first


@pytest.mark.parametrize(
    "render",
    [
        rendered(dict.fromkeys(FULL, "<<one>>"), "", "<<one>>"),  # one mark for two roles
        rendered(FULL | {"system": FULL["user"]}, "##", "<<bot>>"),  # of the system and the user
        rendered({"system": "", "user": "ab", "assistant": "cd"}, "", "cd"),  # marks of two letters
        rendered({"system": "<<sys>>", "user": "", "assistant": "<<bot>>"}, "", "<<bot>>"),
        rendered({"system": "<<sys>>", "user": "<<usr>>", "assistant": ""}, "", ""),
    ],
)
def test_what_shows_no_marks_is_no_template(render: Callable[..., str]) -> None:
    assert learned(render) is None


def test_what_asks_for_an_answer_is_a_mark_too() -> None:
    made = learned(rendered(FULL, "##", "<<go>>"))
    assert made is not None and made.messages("<<usr>>Q##<<go>>") == [Message("user", "Q")]


def test_marks_of_three_letters_are_some() -> None:
    made = learned(rendered({"system": "", "user": "<u>", "assistant": "<a>"}, "", "<a>"))
    assert made is not None
    assert made.messages("<u>Q<a>A") == [Message("user", "Q"), Message("assistant", "A")]


def test_a_tokenizer_s_template_is_tried() -> None:
    def tokenizer(**more: Any) -> Any:
        render = rendered(FULL, "##", "<<bot>>")

        def apply(chat: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
            assert not tokenize
            return render(chat, add_generation_prompt)

        return SimpleNamespace(apply_chat_template=apply, **more)

    found = of_tokenizer(tokenizer(chat_template="some"))
    assert found is not None and found.name == "the tokenizer's own"
    assert of_tokenizer(tokenizer(chat_template=None)) is None
    assert of_tokenizer(SimpleNamespace(chat_template="some")) is None


# What predictors read


def test_long_texts_keep_their_ends() -> None:
    whole = "a" * 8000 + "b" * 4000
    assert capped_text(whole) == whole
    assert capped_text("a" * 8000 + "x" * 2 + "b" * 3999) == "a" * 8000 + "\n" + "b" * 3999
    assert len(capped_text(whole + "c")) == 12_000


def test_plain_formats_count_where_the_answer_begins() -> None:
    assert messages_of("USER: q ASSISTANT:") == [Message("user", "q")]
    assert messages_of("USER: q ASSISTANT:" + " " * 99) is None  # the mark lies further back
    assert messages_of("USER: q ASSISTANT:" + " " * 89) == [Message("user", "q")]
    assert messages_of("USER: q ASSISTANT: yes") is None
    own = Template("own", (("@u", "user"), ("@a", "assistant")))
    assert messages_of("@u q @a") is None
    assert messages_of("@u q @a", own) == [Message("user", "q")]
    for mark in ("<|", "[INST]", "[SYSTEM_PROMPT]", "<start_of_turn>", "<｜"):
        assert mark in served_text.MARKS


def test_what_a_chat_tells_beside_its_question() -> None:
    chat = [Message("assistant", "x" * 40), Message("assistant", ""), Message("assistant", "y")]
    found = told([*chat, Message("user", "q")], 0.25)
    assert found == {
        "previous_answers": 2.0, "previous_tokens": 1.0,
        "previous_log_tokens": pytest.approx(math.log(10) / 2),
    }  # fmt: skip
    assert told([Message("user", "q")], 1.0) == {}
    assert told([Message("system", "s")], 1.0) == {"system_hash": system_hash([("system", "s")])}  # type: ignore[list-item]


def test_columns_that_hold_what_was_asked_are_read_first() -> None:
    chat = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert asked_texts({"prompt": [chat, "b"]}) == ["Q", "b"]
    assert asked_texts({"prompt": ["a"], "asked": ["c" * 12_001]}) == [capped_text("c" * 12_001)]


def test_token_ids_are_read_with_special_tokens_and_without() -> None:
    chat = "<s><|im_start|>user\nQ<s><|im_end|>\n<|im_start|>assistant\nAA<|im_end|>\n"
    chat += "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"

    def reader(text: str, special: list[str]) -> PromptReader:
        def decode(ids: Any, *, skip_special_tokens: bool) -> str:
            return text.replace("<s>", "") if skip_special_tokens else text

        return PromptReader(SimpleNamespace(all_special_tokens=special, decode=decode))

    served = reader(chat, ["<s>"]).served([0] * len(chat))
    assert served.text == "Q2" and served.told["previous_tokens"] == 2
    assert reader(chat.split("A")[0], ["<s>"]).asked([0]) == "Q"
    assert reader(chat.split("A")[0], []).asked([0]) == "Q<s>"
    bare = reader("<s>bare", ["<s>"])
    assert bare.served([0, 1]) == ("bare", {}) and bare.whole([0]) == "bare"


# What is wrong with a score

ARRAYS = "a score gets the features of many requests as arrays"
# a body, and each problem: its kind, its line after the ``def``, what to write instead
BODIES: dict[str, tuple[str, list[tuple[str, int, str]]]] = {
    "if": ("if a > 1:\n        return 2\n    return a",
           [("truth", 1, "np.where(a > 1, ..., ...)")]),
    "while": ("while not a:\n        a = a + 1\n    return a",
              [("truth", 1, "np.where(a == 0, ..., ...)")]),
    "assert": ("assert a\n    return a", [("truth", 1, "np.where(a, ..., ...)")]),
    "if of a tunable": ("if k > 1:\n        return a\n    return 2 * a", []),
    "inline": ("return 1 if a > 2 else -a", [("truth", 1, "np.where(a > 2, 1, -a)")]),
    "and": ("return (a > 1) and (b > 2) and k", [("truth", 1, "(a > 1) & (b > 2) & k")]),
    "or": ("return a or k", [("truth", 1, "a | k")]),
    "logic of tunables": ("return a * (k and 2 or 3)", []),
    "not": ("return not a", [("truth", 1, "a == 0")]),
    "not of a tunable": ("return a * (not k)", []),
    "chain": ("return 1 < a <= 5", [("truth", 1, "(1 < a) & (a <= 5)")]),
    "one comparison": ("return 1 < a", []),
    "max": ("return max(a, b, 3)", [("truth", 1, "np.maximum(np.maximum(a, b), 3)")]),
    "min": ("return min(2, a)", [("truth", 1, "np.minimum(2, a)")]),
    "max of one": ("return max(a)", []),
    "max of tunables": ("return a * max(k, 3)", []),
    "int": ("return int(a)", [("number", 1, "np.trunc(a)")]),
    "round": ("return round(a + 1)", [("number", 1, "np.rint(a + 1)")]),
    "float": ("return float(a)", [("number", 1, "a")]),
    "bool": ("return bool(a)", [("number", 1, "(a != 0)")]),
    "int of a tunable": ("return a * int(k)", []),
    "exp": ("return math.exp(-a)", [("number", 1, "np.exp(-a)")]),
    "atan2": ("return math.atan2(a, b)", [("number", 1, "np.arctan2(a, b)")]),
    "gamma": ("return math.gamma(a)", [("number", 1, "")]),
    "exp of a tunable": ("return a * math.exp(k)", []),
    "nested": ("return math.log(max(a, 1))",
               [("number", 1, "np.log(np.maximum(a, 1))"), ("truth", 1, "np.maximum(a, 1)")]),
    "add to": ("a += k\n    return a", [("write", 1, "a = a + k")]),
    "add to one's own": ("c = a * 2\n    c += 1\n    return c", []),
    "add to what took its name": ("a = a * 2\n    a += 1\n    return a", []),
    "add to a sum": ("c = 0\n    c += a\n    return 1 if c > 2 else 0",
                     [("truth", 3, "np.where(c > 2, 1, 0)")]),
    "add to a sum of tunables": ("c = 0\n    c += k\n    return a if c > 2 else 0", []),
    "put": ("a[a > 5] = 5\n    return a", [("write", 1, "a = np.where(a > 5, 5, a)")]),
    "add to some": ("a[0] -= 1\n    return a", [("write", 1, "a = np.where(0, 1, a)")]),
    "put into a list": ("c = [1]\n    c[0] = 2\n    return a", []),
    "put into two": ("a[0] = b[0] = 1\n    return a", []),
    "out": ("return np.add(a, 1, out=a)", [("write", 1, "")]),
    "out of one's own": ("c = np.zeros(3)\n    return np.add(a, 1, out=c)", []),
    "sort": ("a.sort()\n    return a", [("write", 1, "")]),
    "fill": ("a.fill(0)\n    return a", [("write", 1, "")]),
    "np.sort": ("return np.sort(a)", []),
    "sort a list": ("c = [3]\n    c.sort()\n    return a", []),
    "global": ("global KEPT\n    KEPT = 1\n    return a", [("impure", 1, "a tunable")]),
    "random": ("return a + random.random()",
               [("impure", 1, "random_draw, a feature of simulated engines and routers")]),
    "np.random": ("return a + np.random.rand()",
                  [("impure", 1, "random_draw, a feature of simulated engines and routers")]),
    "time": ("return a - time.time()", [("impure", 1, "now_s, a feature")]),
    "datetime": ("return a - datetime.now()", [("impure", 1, "now_s, a feature")]),
    "uuid": ("return a + uuid.uuid4().int",
             [("impure", 1, "random_draw, a feature of simulated engines and routers")]),
    "through a name": ("c = a * 2\n    d: float = c\n    if d > 1:\n        return 2\n    return d",
                       [("truth", 3, "np.where(d > 1, ..., ...)")]),
    "through a loop": ("for c in a:\n        if c > 1:\n            return 1\n    return a",
                       [("truth", 2, "np.where(c > 1, ..., ...)")]),
    "through a walrus": ("if (c := a) is None:\n        return 1\n    return 2 if c else 3",
                         [("truth", 1, "np.where((c := a) is None, ..., ...)"),
                          ("truth", 3, "np.where(c, 2, 3)")]),
    "two of a kind in a line": ("return min(a, 1) + max(a, 2)",
                                [("truth", 1, "np.minimum(a, 1)")]),
    "in a function inside": ("def inner(a):\n        return int(a)\n    return a", []),
    "fine": ("c = np.where(a > 1, b, k)\n    return np.exp(-c) + abs(a) / np.maximum(b, 1)", []),
}  # fmt: skip


def made_of(folder: Path, body: str, name: str = "mine") -> tuple[Any, int]:
    """A function of a file of its own, and the line of its ``def``."""
    import importlib.util

    path = folder / f"{name}.py"
    path.write_text(
        "import datetime, math, random, time, uuid\nimport numpy as np\nKEPT = 0\n"
        f"def {name}(a, b, *, k=2):\n    {body}\n"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name), 4


@pytest.mark.parametrize("name", BODIES)
def test_what_a_text_shows(name: str, tmp_path: Path) -> None:
    body, wanted = BODIES[name]
    function, line = made_of(tmp_path, body)
    found = suspects(function, ("a", "b"))
    assert [(one.kind, one.line - line, one.instead) for one in found] == wanted
    assert all(one.file.endswith("mine.py") for one in found)


SAID = {
    "if a: pass\n    return a": f"`if a` on a feature; {ARRAYS}",
    "return 1 if a else 2": f"`if a` on a feature; {ARRAYS}",
    "return a or b": f"`or` between features; {ARRAYS}",
    "return a and b": f"`and` between features; {ARRAYS}",
    "return not a": f"`not` of a feature; {ARRAYS}",
    "return 1 < a < 2": f"`1 < a < 2` of features; {ARRAYS}",
    "return min(a, 1)": f"`min` of a feature; {ARRAYS}",
    "return int(a)": f"`int` of a feature; {ARRAYS}",
    "return math.gamma(a)": f"math.gamma takes one number; {ARRAYS}",
    "a *= 2\n    return a": "`a *= 2` writes into an argument, which is the engine's",
    "a[0] = 2\n    return a": "writes into a, which may be an argument or a single number",
    "return np.add(a, 1, out=a)": "writes into a by out=",
    "a.sort()\n    return a": ".sort writes into a",
    "return time.time()": "time.time gives another value at each call",
    "global KEPT\n    return a": "keeps KEPT from one call to the next",
}


@pytest.mark.parametrize("body", SAID)
def test_what_is_said_of_it(body: str, tmp_path: Path) -> None:
    function, _ = made_of(tmp_path, body)
    (one,) = suspects(function, ("a", "b"))
    assert one.what == SAID[body]


def raised(folder: Path, body: str, name: str = "mine") -> tuple[Problem, int]:
    function, line = made_of(folder, body, name)
    with pytest.raises(Exception) as caught:
        function(np.arange(3.0), np.zeros(3))
    return blamed(caught.value, function), line


@pytest.mark.parametrize(
    ("body", "kind", "below", "what", "instead"),
    [
        ("c = 1\n    return 1 // (c - 1)", "zero", 2, "divides by c - 1, which may be 0",
         "np.maximum(c - 1, 1)"),
        ("return 5 % int(k - 2)", "zero", 1, "divides by int(k - 2), which may be 0",
         "np.maximum(int(k - 2), 1)"),
        ("return (1.0).there(a)", "attribute", 1,
         "asks 1.0 for .there, and engines give single numbers too", "np.there(1.0, ...)"),
        ("return np.nothing(a)", "other", 1,
         "raises AttributeError: module 'numpy' has no attribute 'nothing'", ""),
        ("if a > 1:\n        return 2\n    return a", "truth", 1,
         f"`if a > 1` on a feature; {ARRAYS}", "np.where(a > 1, ..., ...)"),
        ("return math.exp(a)", "number", 1, f"math.exp takes one number; {ARRAYS}", "np.exp(a)"),
        ("raise KeyError", "other", 1, "raises KeyError", ""),
        ("raise ValueError('two\\n lines')", "other", 1, "raises ValueError: two lines", ""),
        ("c = [1]\n    return c[5]", "other", 2, "raises IndexError: list index out of range", ""),
    ],
)  # fmt: skip
def test_what_raised_is_blamed_on_its_line(
    body: str, kind: str, below: int, what: str, instead: str, tmp_path: Path
) -> None:
    found, line = raised(tmp_path, body)
    assert (found.kind, found.line - line) == (kind, below)
    assert (found.what, found.instead) == (what, instead)


def test_a_problem_says_where_it_stands_if_that_is_known() -> None:
    assert str(Problem("other", "is wrong")) == "is wrong"
    assert str(Problem("other", "is wrong", "right")) == "is wrong: write right"
    assert str(Problem("other", "is wrong", "", "a.py")) == "a.py: is wrong"
    assert str(Problem("other", "is wrong", "right", "a.py", 3)) == "a.py:3: is wrong: write right"


def test_code_is_found_behind_partials_wrappers_and_objects(tmp_path: Path) -> None:
    def plain(a: Any) -> Any:
        return a

    @functools.wraps(plain)
    def wrapper(a: Any) -> Any:
        return plain(a)

    class Called:
        def __call__(self, a: Any) -> Any:
            return a

    assert code_of(plain) is plain.__code__ is code_of(wrapper)
    assert code_of(functools.partial(functools.partial(plain), 1)) is plain.__code__
    assert code_of(Called()) is Called.__call__.__code__
    assert code_of(np.exp) is None is code_of(3) and place_of(np.exp) == ("", 0)
    assert place_of(plain)[1] == plain.__code__.co_firstlineno
    assert suspects(np.exp, ("a",)) == []
    one = blame.at_return(np.exp, "is", "this")
    assert (one.kind, one.what, one.instead, one.file, one.line) == ("score", "is", "this", "", 0)


def test_a_return_is_named_if_there_is_just_one(tmp_path: Path) -> None:
    one, line = made_of(tmp_path, "c = 1\n    return c", "one")
    two, _ = made_of(tmp_path, "if k:\n        return 1\n    return 2", "two")
    assert blame.at_return(one, "x").line == line + 2
    assert blame.at_return(two, "x").line == line
    inside, _ = made_of(tmp_path, "def f():\n        return 1\n    return f()", "inside")
    assert blame.at_return(inside, "x", kind="nan").line == line + 3


def test_paths_are_shown_from_here_where_that_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert blame._shown(str(tmp_path / "a.py")) == "a.py"
    assert blame._shown("/a.py") == "/a.py" and blame._shown("b/../a.py") == "b/../a.py"


def test_expressions_for_arrays() -> None:
    for text, made in {
        "a and b or c": "a & b | c",
        "not (a > 1)": "(a > 1) == 0",
        "-a": "-a",
        "0 < a < b < 3": "(0 < a) & (a < b) & (b < 3)",
        "a if b else c if d else e": "np.where(b, a, np.where(d, c, e))",
        "min(a, b, c)": "np.minimum(np.minimum(a, b), c)",
        "min(a)": "min(a)",
        "math.pow(a, 2) + math.fabs(b)": "np.power(a, 2) + np.fabs(b)",
        "math.gamma(a)": "math.gamma(a)",
        "np.exp(min(a, 1), where=b)": "np.exp(np.minimum(a, 1), where=b)",
    }.items():
        assert blame._for_arrays(ast.parse(text, mode="eval").body) == made


# The trial of a score


@dataclass
class Moved:
    """A score that is off by a share of itself for one request alone."""

    by: float
    __name__ = "moved"

    def __call__(self, prompt_tokens: Any) -> Any:
        return prompt_tokens * (1.0 + (np.ndim(prompt_tokens) == 0) * self.by)


@pytest.mark.parametrize(("by", "told"), [(5e-7, False), (3e-6, True)])
def test_a_millionth_is_the_same_score(by: float, told: bool) -> None:
    score = Score("moved", Moved(by), ("prompt_tokens",))
    found = contract.problems(score)
    assert bool(found) is told
    if told:
        assert "among others and" in found[0].what
        with pytest.raises(InputError, match=r"router 'moved': .*among others"):
            contract.require(score, "router")
    else:
        contract.require(score)


def test_who_divides_by_zero_is_loaded_and_told_once_a_line() -> None:
    def divides(generated_tokens: Any) -> Any:
        return 1 / generated_tokens

    score = Score.from_function(divides)
    contract.require(score)  # what depends on the values
    (one,) = contract.problems(score)
    assert one.kind == "zero" and one.line == divides.__code__.co_firstlineno + 1


def test_what_is_data_is_not_tried() -> None:
    class Net:
        shift = scale = log = layers = skip = None

        def __call__(self, now_s: Any) -> Any:
            raise AssertionError

    score = Score("net", Net(), ("now_s",))
    contract.require(score)
    assert contract.problems(score) == []


def test_a_constant_and_what_reads_nothing_are_scores() -> None:
    contract.require(Score.from_function(lambda: 3.0, "nothing"))
    assert contract.problems(Score.from_function(lambda now_s: 3, "three")) == []


def test_the_edges_are_among_what_is_tried() -> None:
    seen: list[Any] = []

    def watches(prompt_tokens: Any, generated_tokens: Any) -> Any:
        if np.ndim(prompt_tokens):
            seen.append((np.array(prompt_tokens), np.array(generated_tokens)))
        return prompt_tokens + generated_tokens

    contract.require(Score.from_function(watches))
    assert [len(one[0]) for one in seen] == [contract.TRIED] * 2 == [16, 16]
    assert seen[0][1][:2].tolist() == [0, 1] and seen[0][0][:2].tolist() == [1, 1]
    seen.clear()
    contract.problems(Score.from_function(watches), rows=40)
    assert [len(one[0]) for one in seen] == [40, 40]


def test_a_score_that_gives_nothing_is_told_so() -> None:
    def nothing(now_s: Any) -> Any:
        now_s + 1

    found = policy.wrong_score(nothing, None, 3)
    assert found is not None and found.what == "gives None"


@pytest.mark.parametrize(("text", "said"), [("min(a)", None), ("max(a, b)", "`max` of a feature")])
def test_only_a_choice_between_features_is_one_of_a_feature(text: str, said: str | None) -> None:
    """``min(a)`` goes through an array, which is no choice between requests."""
    found = blame._truth(ast.parse(text, mode="eval").body, lambda node: True)
    assert (found and found.what.partition(";")[0]) == said
