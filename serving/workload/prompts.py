"""A generator of prompts that read naturally, with answer lengths that depend on them.

Sixteen families of tasks (questions, code, summaries, stories of a stated length ...) fill
templates with words. The logarithm of an answer's length is the sum of

- what the text says: the task, how much is asked for, the topic (a good predictor learns this);
- a part of its own for each prompt, which no text model can know from other prompts;
- noise of each sample, so that two samples of one prompt differ as those of a real model do.

The prompt's length alone says little: long texts to summarise get short answers.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.serving.draws import stream
from lengthwise.serving.workload import words
from lengthwise.serving.workload.readers import Prompts
from lengthwise.serving.workload.tokens import estimate_tokens

MAX_OUTPUT_TOKENS = 4096
TOPIC_SD = 0.2  # log tokens, between topics (and other fillings of a template)
BETWEEN_SD = 1.52  # log tokens, between prompts altogether; what `ceiling` is measured against
NOISE = 4  # the stream of random numbers that belongs to the samples

T = TypeVar("T")
Draft = tuple[str, float]  # a prompt and the tokens its answer usually has


def generate_prompts(n: int, seed: int = 0, *, ceiling: float = 0.74, sample: int = 0) -> Prompts:
    """n prompts with estimated prompt tokens and sampled answer lengths.

    ceiling  Kendall's tau between the lengths of two samples for the same prompts, in (0, 1]; the
             default is what Llama-3-70B reaches on ShareGPT (Fu et al., 2024), 1 is no noise
    sample   0, 1, 2 ...: other answers to the same prompts
    """
    if n < 1:
        raise InputError(f"the number of prompts must be 1 or more, not {n}")
    if not 0 < ceiling <= 1:
        raise InputError(f"ceiling must be above 0 and at most 1, not {ceiling!r}")
    rng = Random(f"prompts {seed}")
    drafts = [_draft(rng) for _ in range(n)]
    prompts = [text for text, _, _ in drafts]
    usual = np.array([log_tokens for _, log_tokens, _ in drafts])
    usual += np.array([own_sd for _, _, own_sd in drafts]) * _own_scores(prompts)
    noise = stream(seed, NOISE, sample)
    log_tokens = usual + noise_sd(ceiling) * noise.standard_normal(n)
    output = np.clip(np.rint(np.exp(log_tokens)), 1, MAX_OUTPUT_TOKENS).astype(np.int64)
    return Prompts(
        prompt=np.fromiter(prompts, dtype=object, count=n),
        prompt_tokens=estimate_tokens(prompts),
        output_tokens=output,
        censored=np.exp(log_tokens) > MAX_OUTPUT_TOKENS,
        name=f"generated prompts (seed {seed})",
    )


def noise_sd(ceiling: float) -> float:
    """The noise (log tokens) at which two samples of a prompt agree with that Kendall's tau.

    Normal log lengths of correlation r have tau = 2/pi arcsin r, and two samples of one prompt
    have r = between / (between + noise) variance.
    """
    correlation = math.sin(math.pi * ceiling / 2)
    return BETWEEN_SD * math.sqrt((1 - correlation) / correlation)


def _own_scores(prompts: list[str]) -> NDArray[np.float64]:
    """A standard normal score for each prompt, from a hash of its text."""
    from scipy.special import ndtri

    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in prompts)
    uniform = (np.frombuffer(digests, dtype="<u8") >> 11).astype(np.float64) / 2.0**53
    return np.asarray(ndtri(np.clip(uniform, 1e-12, 1 - 1e-12)))


def _pick(rng: Random, items: tuple[T, ...]) -> T:
    return items[int(rng.random() * len(items))]


def _between(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _slant(*parts: str) -> float:
    """The factor by which these words lengthen an answer, the same wherever they appear."""
    score = 0.0
    for part in parts:
        digest = blake2b(part.encode(), digest_size=4).digest()
        score += (int.from_bytes(digest) / 2**31 - 1) * math.sqrt(3)  # uniform of variance 1
    return math.exp(TOPIC_SD * score)


def _text(rng: Random, sentences: int) -> str:
    """A passage of that many sentences."""
    return " ".join(
        f"{_pick(rng, words.SUBJECTS)} {_pick(rng, words.PREDICATES)} "
        f"{_pick(rng, words.CIRCUMSTANCES)}."
        for _ in range(sentences)
    )


def _fact(rng: Random) -> Draft:
    place, other = _pick(rng, words.PLACES), _pick(rng, words.PLACES)
    thing, second = _pick(rng, words.INVENTIONS), _pick(rng, words.INVENTIONS)
    topic = _pick(rng, words.TOPICS)
    return _pick(
        rng,
        (
            (f"What is the capital of {place}?", 14.0),
            (f"What currency is used in {place}?", 18.0),
            (f"Who invented the {thing}?", 38.0),
            (f"When was the {thing} invented?", 32.0),
            (f"What time zone is {place} in?", 22.0),
            (f"Define {topic} in one sentence.", 34.0),
            (f"Yes or no: is {topic} taught at school in {place}?", 8.0),
            (f"Which language do people speak in {place}, and since when?", 60.0),
            (f"Give me one fun fact about {topic}.", 45.0),
            (f"Is {place} larger than {other}?", 30.0),
            (f"How far is it from {place} to {other}?", 40.0),
            (f"Which came first, the {thing} or the {second}?", 50.0),
            (f"Was the {thing} invented in {place}? Yes or no.", 6.0),
        ),
    )


def _explain(rng: Random) -> Draft:
    topic = _pick(rng, words.TOPICS)
    style, factor = _pick(
        rng,
        (
            ("", 1.0), ("", 1.0), (" briefly", 0.4), (" in detail", 1.8), (" to a child", 0.75),
            (" in two sentences", 0.16), (" step by step", 1.4), (" with examples", 1.5),
            (" to an expert", 1.3), (" in simple terms", 0.8), (" using an analogy", 0.8),
        ),
    )  # fmt: skip
    text = _pick(
        rng,
        (
            f"Explain {topic}{style}.", f"Can you explain {topic}{style}?",
            f"How does {topic} work? Please explain{style}.", f"I need to understand {topic}"
            f"{style and ', explained' + style}. Where should I start?",
            f"Describe the history and importance of {topic}{style}.",
        ),
    )  # fmt: skip
    return text, 330 * factor * _slant(topic)


def _list(rng: Random) -> Draft:
    thing, count = _pick(rng, words.THINGS), _pick(rng, (3, 5, 5, 7, 8, 10, 10, 12, 15, 20, 25, 30))
    extra, each = _pick(
        rng,
        (
            ("", 14), ("", 14), (" with a short explanation for each", 38), (", just the list", 8),
            (" and say why each is worth it", 42), (" in a numbered list", 14),
        ),
    )  # fmt: skip
    verb = _pick(rng, ("Give me", "List", "Suggest", "I need", "Come up with", "Name"))
    return f"{verb} {count} {thing}{extra}.", (12 + count * each) * _slant(thing)


def _code(rng: Random) -> Draft:
    language = _pick(rng, words.LANGUAGES)
    task, tokens = _pick(rng, words.CODE_TASKS)
    extra, factor = _pick(
        rng,
        (
            ("", 1.0), ("", 1.0), (" Only show the code.", 0.6), (" Include unit tests.", 1.9),
            (" Explain each line.", 1.8), (" Keep it short.", 0.6), (" Add error handling.", 1.35),
        ),
    )  # fmt: skip
    verb = _pick(rng, ("Write", "Show me", "Can you write", "Implement"))
    kind = _pick(rng, ("function", "program", "script"))
    end = "?" if verb.startswith("Can") else "."
    return (
        f"{verb} a {language} {kind} that {task}{end}{extra}",
        tokens * factor * _slant(language, kind),
    )


def _summarise(rng: Random) -> Draft:
    how, tokens = _pick(
        rng,
        (
            ("in one sentence", 32), ("in three bullet points", 68), ("in a short paragraph", 95),
            ("in five words", 9), ("for a busy reader", 75), ("as a headline", 14),
        ),
    )  # fmt: skip
    verb = _pick(rng, ("Summarise", "Sum up", "Condense"))
    return (
        f"{verb} the following text {how}.\n\n{_text(rng, _between(rng, 4, 40))}",
        tokens * _slant(how),
    )


def _translate(rng: Random) -> Draft:
    tongue, text = _pick(rng, words.TONGUES), _text(rng, _between(rng, 1, 8))
    verb = _pick(rng, ("Translate into", "Please translate this text to", "How do you say this in"))
    return f"{verb} {tongue}: {text}", len(text) / 4.2 * _slant(tongue) ** 2


def _math(rng: Random) -> Draft:
    name, good = _pick(rng, words.NAMES), _pick(rng, words.GOODS)
    steps = _between(rng, 1, 5)
    text = f"{name} has {_between(rng, 12, 90)} {good}."
    for _ in range(steps):
        other = _pick(rng, words.NAMES)
        text += _pick(
            rng,
            (
                f" {other} gives {name} {_between(rng, 3, 40)} more.",
                f" {name} sells {_between(rng, 2, 12)} of them to {other}.",
                f" Then {name} doubles what is left.",
                f" {other} takes a third of the rest.",
                f" The next day {name} buys {_between(rng, 2, 9)} boxes of {_between(rng, 2, 12)}.",
            ),
        )
    ask, factor = _pick(
        rng,
        (
            (f" How many {good} does {name} have now?", 1.0),
            (f" How many {good} are left? Show your work.", 1.5),
            (f" How many {good} does {name} have? Answer with the number only.", 0.06),
        ),
    )
    return text + ask, (45 + 34 * steps) * factor


def _story(rng: Random) -> Draft:
    who, plot = _pick(rng, words.CHARACTERS), _pick(rng, words.PLOTS)
    form, tokens = _pick(
        rng,
        (
            ("a story", 720), ("a short story", 520), ("a poem", 230), ("a haiku", 24),
            ("a bedtime story", 600), ("the opening paragraph of a novel", 170), ("a limerick", 60),
            ("a dialogue", 430), ("a detailed story in three chapters", 1500),
        ),
    )  # fmt: skip
    if rng.random() < 0.35:
        count = _pick(rng, (50, 100, 150, 200, 300, 400, 500, 600, 800, 1000, 1500))
        return f"Write a {count}-word story about {who} {plot}.", 1.3 * count**0.97
    return f"Write {form} about {who} {plot}.", tokens * _slant(who)


def _classify(rng: Random) -> Draft:
    text = _text(rng, _between(rng, 1, 6))
    task, tokens = _pick(
        rng,
        (
            ("Is the tone of this text positive, negative or neutral? One word.", 3),
            ("Classify the topic of this text as business, culture, science or sport.", 7),
            ("What is the sentiment of this review? Give a reason.", 55),
            ("Does this text mention a number? Answer yes or no.", 3),
            ("Rate the formality of this text from 1 to 10 and justify the rating.", 80),
        ),
    )
    return _pick(rng, (f"{task}\n\n{text}", f"{text}\n\n{task}")), float(tokens)


def _rewrite(rng: Random) -> Draft:
    text = _text(rng, _between(rng, 1, 9))
    task, factor = _pick(
        rng,
        (
            ("Rewrite this text in a formal tone", 1.2), ("Make this text shorter", 0.5),
            ("Correct the grammar of this text", 1.05), ("Rewrite this as a news report", 1.6),
            ("Paraphrase this text", 1.1), ("Turn this text into a bulleted list", 0.9),
        ),
    )  # fmt: skip
    return f"{task}: {text}", len(text) / 5.5 * factor


def _advice(rng: Random) -> Draft:
    situation = _pick(rng, words.SITUATIONS)
    ask, tokens = _pick(
        rng,
        (
            ("What should I do?", 330), ("Any advice?", 300), ("Is that normal?", 190),
            ("Give me a detailed plan.", 620), ("Please keep it short.", 95),
            ("What would you say to me?", 220), ("Help me see both sides.", 380),
        ),
    )  # fmt: skip
    start = _pick(rng, ("", "Hi! ", "Honestly, ", "So, ", "For months now, "))
    return f"{start}{situation}. {ask}", tokens * _slant(situation)


def _letter(rng: Random) -> Draft:
    to, matter = _pick(rng, words.RECIPIENTS), _pick(rng, words.MATTERS)
    kind, tokens = _pick(
        rng,
        (
            ("an email", 190), ("a short email", 105), ("a formal letter", 300),
            ("a text message", 42), ("a friendly note", 110), ("a detailed complaint", 380),
        ),
    )  # fmt: skip
    verb = _pick(rng, ("Write", "Draft", "Help me write"))
    return f"{verb} {kind} to {to} about {matter}.", tokens * _slant(to, matter)


def _extract(rng: Random) -> Draft:
    task, tokens = _pick(
        rng,
        (
            ("List every organisation named in the text below.", 40),
            ("Extract the main event from the text below as JSON.", 55),
            ("Which question does the text below answer?", 22),
            ("Give three keywords for the text below.", 11),
        ),
    )
    return f"{task}\n\n{_text(rng, _between(rng, 6, 30))}", tokens * _slant(task)


def _compare(rng: Random) -> Draft:
    pair = _pick(rng, words.PAIRS)
    text, tokens = _pick(
        rng,
        (
            (f"Compare {pair}.", 400), (f"Compare {pair} in a table.", 300),
            (f"What is the difference between {pair}?", 310), (f"{pair}: which is better?", 270),
            (f"Write an essay that compares {pair}.", 850), (f"In one line, {pair}: which?", 25),
        ),
    )  # fmt: skip
    return text, tokens * _slant(pair)


def _plan(rng: Random) -> Draft:
    place, days = _pick(rng, words.PLACES), _between(rng, 2, 14)
    style, factor = _pick(
        rng,
        (
            ("", 1.0), (" on a budget", 1.05), (" with small children", 1.1), (" by train", 1.0),
            (", only the names of the stops", 0.15), (" with restaurant tips for every day", 1.6),
        ),
    )  # fmt: skip
    verb = _pick(rng, ("Plan", "Suggest an itinerary for", "Help me plan"))
    return f"{verb} a {days}-day trip to {place}{style}.", (90 + 75 * days) * factor * _slant(place)


def _greet(rng: Random) -> Draft:
    greeting = _pick(rng, words.GREETINGS)
    name = f" I'm {_pick(rng, words.NAMES)}." if rng.random() < 0.5 else ""
    topic = f" Let's talk about {_pick(rng, words.TOPICS)}." if rng.random() < 0.5 else ""
    return greeting + name + topic, (22 + 35 * bool(topic)) * _slant(greeting)


@dataclass(frozen=True)
class Family:
    """``weight``: how often it is asked; ``own_sd``: log tokens between prompts that read alike."""

    make: Callable[[Random], Draft]
    weight: float
    own_sd: float


# answers to open tasks differ more than those whose length the task sets
FAMILIES = (
    Family(_fact, 8, 0.6), Family(_explain, 14, 0.85), Family(_list, 10, 0.6),
    Family(_code, 13, 0.95), Family(_summarise, 6, 0.5), Family(_translate, 5, 0.3),
    Family(_math, 6, 0.7), Family(_story, 8, 0.8), Family(_classify, 4, 0.5),
    Family(_rewrite, 5, 0.4), Family(_advice, 9, 0.85), Family(_letter, 6, 0.8),
    Family(_extract, 3, 0.7), Family(_compare, 5, 0.8), Family(_plan, 5, 0.7),
    Family(_greet, 3, 0.7),
)  # fmt: skip
_WEIGHTS = np.array([family.weight for family in FAMILIES])
_BOUNDS = (np.cumsum(_WEIGHTS)[:-1] / _WEIGHTS.sum()).tolist()


def _draft(rng: Random) -> tuple[str, float, float]:
    """A prompt, the usual log tokens of its answer, and how far single prompts are from that."""
    family = FAMILIES[bisect_right(_BOUNDS, rng.random())]
    text, tokens = family.make(rng)
    if rng.random() < 0.25:
        text = _pick(rng, words.OPENERS) + text
    if rng.random() < 0.25:
        text = f"{text} {_pick(rng, words.CLOSERS)}"
    return text, math.log(tokens), family.own_sd
