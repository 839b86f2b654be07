"""What a policy is: a pure function from features to a score; the lowest score goes first.

Positional parameters are features, keyword-only parameters are tunables; an annotation may say
which values they take: ``b: Annotated[float, Between(0, 100)] = 0.08``. The same ``Score`` runs on
scalars (in an engine plugin), on numpy arrays (observations) and compiled by numba (the kernel).
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lengthwise import features
from lengthwise.blame import Problem, at_return, blamed, place_of
from lengthwise.errors import InputError, LengthwiseError, UnknownNameError
from lengthwise.features import Changes
from lengthwise.picoseconds import picoseconds
from lengthwise.trained import TrainedOn

Tunable = bool | int | float
LONGEST_FLOOR_S = 1e6  # of a guard
MOST_NUMBER = sys.float_info.max  # an int may be beyond it, and then is no float
MOST_COUNT = 2**31 - 1  # of tokens, requests and replicas, as the compiled engine counts them
LARGEST = 2**53  # of a tunable: whole numbers are exact up to here in every engine


@dataclass(frozen=True)
class Between:
    """The values that a tunable takes, both ends included; raises ``InputError`` for no range."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low <= self.high < math.inf:
            raise InputError(f"a tunable's range from {self.low!r} to {self.high!r} is none")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.15g} to {self.high:.15g}"

    def nearest(self, value: Tunable) -> Tunable:
        """``value``, or the end of the range that is nearest to it, in the same type."""
        return type(value)(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Score:
    """A score function with its tunables bound.

    ``function(*values, **tunables)`` takes one value (scalar or array of shape (n,)) per name in
    ``features`` and returns a value of the same shape. It sees arrays that it can't write to. Ties
    are broken by request id (scheduling) or by replica index (routing). ``ranges`` holds those that
    tunables declare.
    """

    name: str
    function: Callable[..., Any]
    features: tuple[str, ...]
    tunables: Mapping[str, Tunable] = field(default_factory=dict)
    ranges: Mapping[str, Between] = field(default_factory=dict)

    def __call__(self, *values: Any) -> Any:
        return self.function(*map(_read_only, values), **self.tunables)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The score from a mapping that holds at least the features the score reads."""
        return self(*(values[name] for name in self.features))

    def numbers(
        self, values: Mapping[str, Any], count: int, kind: str = "policy"
    ) -> NDArray[np.float64]:
        """The scores of ``count`` requests or replicas, (count,); ``values`` as for ``evaluate``.

        Raises ``InputError`` that says in which line of the user's function what is wrong: it
        raised, or gave what is no number, NaN, or another shape. ``kind`` is what it calls itself.
        """
        try:
            found = self.evaluate(values)
        except LengthwiseError:
            raise
        except (Exception, SystemExit) as error:
            told = blamed(error, self.function)
            raise InputError(f"{kind} {self.name!r}: {told}") from error
        problem = wrong_score(self.function, found, count)
        if problem is not None:
            raise InputError(f"{kind} {self.name!r}: {problem}")
        scores = np.asarray(found, dtype=np.float64)
        if np.isnan(scores).any():
            raise InputError(
                f"{kind} {self.name!r} gave NaN for a score{self._nan(values, scores)}"
            )
        return np.broadcast_to(scores, (count,))

    def _nan(self, values: Mapping[str, Any], scores: NDArray[np.float64]) -> str:
        """For which features it was, and where the function stands."""
        at = int(np.isnan(scores).argmax())
        row = {name: np.ravel(values[name])[at if np.size(values[name]) > 1 else 0].item()
               for name in self.features}  # fmt: skip
        file, line = place_of(self.function)
        given = ", ".join(f"{name} {value:.6g}" for name, value in row.items())
        return f" ({file}:{line}, where {given})" if line else ""

    @property
    def changes(self) -> frozenset[Changes]:
        """When the score changes after arrival; empty for a static score."""
        return features.changes(self.features)

    def with_tunables(self, given: Mapping[str, Tunable]) -> Score:
        """The same score with some tunables replaced.

        Unknown names, wrong types, NaN and values outside a declared range are errors.
        """
        bound = dict(self.tunables)
        for name, value in given.items():
            if name not in bound:
                raise UnknownNameError(f"tunable of policy {self.name!r}", name, bound)
            label = f"{self.name}:{name}"
            bound[name] = _inside(self.ranges, name, _as_type_of(bound[name], value, label), label)
        return Score(self.name, self.function, self.features, bound, self.ranges)

    @classmethod
    def from_function(cls, function: Callable[..., Any], name: str | None = None) -> Score:
        """Reads features and tunables off a function's signature.

        Raises ``UnknownNameError`` for a positional parameter that is no feature and ``InputError``
        for a signature that a policy can't have.
        """
        name = name or str(getattr(function, "__name__", "policy"))
        if inspect.isclass(function) or not callable(function):
            what = "a class" if inspect.isclass(function) else repr(function)
            raise InputError(f"policy {name!r} is {what}; a policy is a function: def {name}(...)")
        names: list[str] = []
        tunables: dict[str, Tunable] = {}
        ranges: dict[str, Between] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InputError(f"policy {name!r} takes *{parameter.name}; name each feature")
            if parameter.kind is parameter.KEYWORD_ONLY:
                if not isinstance(parameter.default, bool | int | float):
                    raise InputError(
                        f"tunable {parameter.name!r} of policy {name!r} needs a default that is "
                        f"a number or a bool, not {parameter.default!r}"
                    )
                declared = _declared(function, parameter, name)
                if declared is not None:
                    ranges[parameter.name] = declared
                tunables[parameter.name] = _inside(
                    ranges, parameter.name, parameter.default, f"{name}:{parameter.name}"
                )
            else:
                features.get(parameter.name)
                names.append(parameter.name)
        return cls(name, function, tuple(names), tunables, ranges)


@runtime_checkable
class Layered(Protocol):
    """A score function that is data: what ``policies.learned.MLP`` says, an engine compiles."""

    @property
    def shift(self) -> NDArray[Any]: ...

    @property
    def scale(self) -> NDArray[Any]: ...

    @property
    def log(self) -> NDArray[Any]: ...

    @property
    def layers(self) -> Sequence[tuple[NDArray[Any], NDArray[Any]]]: ...

    @property
    def skip(self) -> NDArray[Any] | None: ...


@runtime_checkable
class Weighted(Protocol):
    """A score function that is data: what ``policies.blend.Blend`` says, an engine compiles."""

    @property
    def parts(self) -> Sequence[Score]: ...

    @property
    def weights(self) -> Sequence[float]: ...


@runtime_checkable
class Stepwise(Protocol):
    """A score function that is data: what ``policies.formula.Formula`` says, an engine runs."""

    @property
    def steps(self) -> Sequence[tuple[int, float]]: ...


def _read_only(value: Any) -> Any:
    """What a score may look at but not write to: the arrays are the engine's own."""
    if not isinstance(value, np.ndarray):
        return value
    view = value.view()
    view.flags.writeable = False
    return view


def wrong_score(function: Callable[..., Any], found: Any, count: int) -> Problem | None:
    """Why what a score gave is no score of ``count`` requests; None if it is one."""
    if found is None:
        return at_return(function, "gives None", "return and the score")
    try:
        made = np.asarray(found)
    except (ValueError, TypeError):  # rows of several lengths
        made = np.asarray(None)
    if made.dtype.kind not in "biuf":
        try:
            said = f"{found!r:.60}"
        except Exception:
            said = f"a {type(found).__name__}"
        return at_return(function, f"gives {said}, which is no number")
    if made.shape not in ((), (count,)):
        each = f"one number for each of the {count}, as the features have"
        return at_return(function, f"gives an array of shape {made.shape}", each)
    return None


def _declared(
    function: Callable[..., Any], parameter: inspect.Parameter, policy: str
) -> Between | None:
    """The range that a tunable's annotation declares, which may be a string."""
    said = parameter.annotation
    if isinstance(said, str) and "Annotated" in said:
        try:
            said = eval(said, getattr(function, "__globals__", {}))
        except Exception as error:
            raise InputError(
                f"the annotation of tunable {parameter.name!r} of policy {policy!r} can't be read: "
                f"{type(error).__name__}: {error}"
            ) from error
    return next((one for one in get_args(said)[1:] if isinstance(one, Between)), None)


def _inside(ranges: Mapping[str, Between], name: str, value: Tunable, label: str) -> Tunable:
    """The value, if it is a number and inside the range that is declared for it, if one is."""
    if value != value:
        raise InputError(f"tunable {label} takes numbers, not nan")
    if name in ranges and value not in ranges[name]:
        raise InputError(f"tunable {label} takes {ranges[name]}, not {value!r}")
    return value


def _as_type_of(default: Tunable, value: Any, label: str) -> Tunable:
    """``value`` in the type of the tunable's default; numbers may come as ints or floats."""
    kind = type(default)
    if kind is bool and isinstance(value, bool):
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and abs(value) > LARGEST:
        raise InputError(f"tunable {label} takes numbers up to {LARGEST}, not {value}")
    if kind is int and whole:
        return int(value)
    if kind is float and (whole or isinstance(value, float)):
        return float(value)
    raise InputError(f"tunable {label} takes {kind.__name__}, not {value!r}")


@dataclass(frozen=True)
class Preemption:
    """When a waiting request may take the place of a running one.

    A victim ``v`` gives way to the waiting request ``w`` when

        score(v) - score(w) > margin + cost(lost tokens of v, running, waiting)

    With scores in tokens both sides are decode steps of waiting: what the exchange saves, and what
    it wastes. A lost token (to be computed again, or moved to host memory and back) delays every
    request in the replica, and so does the iteration that computes it, whose kernels are launched
    one by one; when few requests wait for many seats, a seat becomes free soon without
    any preemption. ``price=0`` is the naive preemption of most published code.
    """

    mode: Literal["none", "recompute", "swap"] = "none"
    price: float = 0.01  # score units per lost token and request in the replica
    overhead_tokens: int = 256  # lost beside the victim's own: what resuming costs at least
    margin: float = 0.0  # score units
    max_per_step: int = 8
    protect_after: float = 1.0  # share of predicted_tokens generated, past which none is preempted

    def __post_init__(self) -> None:
        if self.mode not in ("none", "recompute", "swap"):
            raise UnknownNameError("preemption mode", self.mode, ("none", "recompute", "swap"))
        for name in ("price", "margin", "protect_after"):
            value = getattr(self, name)
            if not 0 <= value <= MOST_NUMBER and value != math.inf:
                raise InputError(f"preemption {name} must be 0 or more, not {value!r}")
        for name, least in (("overhead_tokens", 0), ("max_per_step", 1)):
            value = getattr(self, name)
            if not least <= value <= MOST_COUNT:
                raise InputError(
                    f"preemption {name} must be {least} or more, up to {MOST_COUNT}, not {value!r}"
                )

    def cost(self, lost_tokens: int, running: int, waiting: int) -> float:
        """What preempting costs, in score units; ``waiting`` is 1 or more.

        The order of operations is part of the contract: the compiled engine repeats it to the bit.
        """
        in_replica = running + waiting
        lost = lost_tokens + self.overhead_tokens
        return self.price * lost * in_replica * max(1.0, running / waiting)

    def protects(self, generated: int, predicted: int) -> bool:
        """Whether a request is too close to its predicted end to give way.

        ``predicted`` is its predicted length in whole tokens, rounded up; 0 if nobody predicted it
        (a default length protects nobody).
        """
        return predicted > 0 and generated >= self.protect_after * predicted


# Features that admission can reserve for: what each request is predicted to generate yet.
RESERVED = ("predicted_tokens", "expected_remaining_tokens", "remaining_tokens_p90")


@dataclass(frozen=True)
class Admission:
    """Which waiting requests may enter the batch, beyond vLLM's own checks.

    KV blocks must be free for a share ``reserve`` of what all running requests and the candidate
    are predicted to generate yet; 0 is stock vLLM, which admits whoever fits now. ``by`` says how
    that is counted. "sum": for all of them at once, as if nobody's memory came back (S3, Jin et
    al., NeurIPS 2023, section 3.2; with predictions of ``max_tokens`` the usual conservative
    admission). "peak": for the most that they will hold at one moment, where who ends frees its
    blocks (Past-Future, Gong et al., ASPLOS 2025, section 4; with exact lengths MC-SF's check,
    Jaillet et al., 2025, equation 5). ``of`` is the feature that says what is to come:
    ``predicted_tokens`` less those generated, or one that is refreshed while requests generate.
    """

    reserve: float = 0.0
    by: Literal["sum", "peak"] = "sum"
    of: str = "predicted_tokens"

    def __post_init__(self) -> None:
        if self.by not in ("sum", "peak"):
            raise UnknownNameError("way to count what admission reserves", self.by, ("sum", "peak"))
        if self.of not in RESERVED:
            raise UnknownNameError("length that admission reserves for", self.of, RESERVED)
        if not 0 <= self.reserve <= MOST_NUMBER and self.reserve != math.inf:
            raise InputError(f"admission reserve must be 0 or more, not {self.reserve!r}")

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that it reads: none where it reserves nothing."""
        return (self.of,) if self.reserve > 0 else ()


@dataclass(frozen=True)
class Guard:
    """How long a request may wait: then it goes first, whatever its score.

    The measure is what FCFS, with the same work, would have made requests wait lately; see
    ``lengthwise.starvation``.
    """

    ratio: float = 1.5  # of the longest such wait; 0 switches the guard off, wherever it is said
    floor_s: float = 0.5  # nobody goes first for a wait shorter than this

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= MOST_NUMBER or not 0 <= self.floor_s <= LONGEST_FLOOR_S:
            raise InputError(
                f"guard ratio must be 0 or more and finite, floor_s from 0 to {LONGEST_FLOOR_S:g} s"
            )

    @property
    def floor_ps(self) -> int:
        """``floor_s`` in picoseconds."""
        return picoseconds(self.floor_s)


@dataclass(frozen=True)
class SchedulingPolicy:
    """An order (the score) and, beside it, what is not order: preemption, admission, a guard."""

    score: Score
    preemption: Preemption = field(default_factory=Preemption)
    admission: Admission = field(default_factory=Admission)
    # None says nothing: the simulated engine then has no guard, a plugin that of its settings
    guard: Guard | None = None
    # Which of vLLM's two queues the engine keeps: "priority" orders by score, also for the victim
    # under KV pressure; "fcfs" is vLLM's own, where a preempted request returns to the front.
    queue: Literal["fcfs", "priority"] = "priority"
    label: str = ""  # as the user spelled it; the score's name when empty
    trained_on: TrainedOn | None = None  # of a learned one

    @property
    def name(self) -> str:
        """What tables call the policy."""
        return self.label or self.score.name

    @property
    def acting_guard(self) -> Guard | None:
        """The guard that acts where nobody but the policy is asked; in arrival order none need."""
        guard = self.guard
        return guard if guard is not None and guard.ratio > 0 and self.queue == "priority" else None


@dataclass(frozen=True)
class RoutingPolicy:
    """A score over replicas; ``choices`` > 0 samples that many replicas first (power of d)."""

    score: Score
    choices: int = 0
    label: str = ""
    trained_on: TrainedOn | None = None  # of a learned one

    def __post_init__(self) -> None:
        if not 0 <= self.choices <= MOST_COUNT:
            raise InputError(
                f"a router's choices must be from 0 to {MOST_COUNT}, not {self.choices!r}"
            )

    @property
    def name(self) -> str:
        """What tables call the router."""
        return self.label or self.score.name
