"""Exported policies: a folder with ``policy.json``, ``weights.safetensors`` and a card.

No pickle and no code: reading an untrusted bundle runs nothing of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise import features
from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.blend import Blend
from lengthwise.policies.card import CARD, card
from lengthwise.policies.formula import Formula, of_text, read, spelled
from lengthwise.policies.learned import MLP
from lengthwise.policies.limits import limits
from lengthwise.policy import (
    Admission,
    Guard,
    Preemption,
    RoutingPolicy,
    SchedulingPolicy,
    Score,
)
from lengthwise.reading import plain_bytes
from lengthwise.registry import load as load_registered
from lengthwise.trained import TrainedOn
from lengthwise.writing import whole_folder

# 1 said "ratio 0" of a guard where the policy said nothing of one; 2 knew neither blends, nor a
# network's linear part, nor what a policy was trained on; 3 knew no formulas
FORMAT = 4
POLICY, WEIGHTS, PREDICTOR = "policy.json", "weights.safetensors", "predictor"
LARGEST_NUMBER = 2**63 - 1
LARGEST = 64 * 2**20  # bytes of one file: far above any policy, far below a serving host's memory


def is_bundle(path: str) -> bool:
    """Whether ``path`` is a folder with a ``policy.json`` in it."""
    return os.path.isfile(os.path.join(path, POLICY))


def write_bundle(
    policy: SchedulingPolicy | RoutingPolicy, folder: str | Path, about: str = ""
) -> Path:
    """Writes a registered policy with its tunables, a learned one or a formula, as a bundle;
    atomically.

    ``about`` is the text of its card, by default what ``card`` says without a training report.
    Raises ``InputError`` for a policy that is any other Python function, as a bundle holds no code,
    and for a folder that holds anything but a bundle, which would be replaced.
    """
    policy = _as_data(policy)
    score = policy.score
    described: dict[str, Any] = {
        "format": FORMAT,
        "kind": "scheduling" if isinstance(policy, SchedulingPolicy) else "routing",
        "name": policy.name,
        "features": [{"name": n, "unit": features.get(n).unit} for n in score.features],
        "tunables": dict(score.tunables),
    }
    if isinstance(policy, SchedulingPolicy):
        described["preemption"] = dataclasses.asdict(policy.preemption)
        described["admission"] = dataclasses.asdict(policy.admission)
        described["guard"] = None if policy.guard is None else dataclasses.asdict(policy.guard)
        described["queue"] = policy.queue
    else:
        described["choices"] = policy.choices
    if policy.trained_on is not None:
        described["trained_on"] = {
            "ranges": {name: [low, high] for name, low, high in policy.trained_on.ranges},
            "workloads": list(policy.trained_on.workloads),
        }
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"can't write the bundle {str(target)!r}: it is a file, not a folder")
    if target.is_dir() and any(target.iterdir()) and not is_bundle(str(target)):
        raise InputError(
            f"can't write the bundle {str(target)!r}: it holds other files; name a new folder"
        )
    try:
        with whole_folder(target) as here:
            if isinstance(score.function, MLP):
                from safetensors.numpy import save_file

                net = score.function
                described["score"] = {
                    "type": "mlp", "layers": len(net.layers), "skip": net.skip is not None,
                }  # fmt: skip
                save_file(_tensors(net), here / WEIGHTS)
            elif isinstance(score.function, Blend):
                terms = zip(score.function.terms, score.function.weights, strict=True)
                described["score"] = {
                    "type": "blend",
                    "terms": [{"name": name, "weight": weight} for name, weight in terms],
                }
            elif isinstance(score.function, Formula):
                described["score"] = {"type": "formula", "text": spelled(score.function.tree)}
            else:
                described["score"] = {"type": "registered", "name": _registered(policy)}
            (here / POLICY).write_text(json.dumps(described, indent=2) + "\n")
            (here / CARD).write_text(about or card(policy), "utf-8")
            if (target / PREDICTOR).is_dir():  # a re-exported policy keeps its predictor
                os.rename(target / PREDICTOR, here / PREDICTOR)
    except OSError as error:
        raise InputError(f"can't write the bundle {str(target)!r}: {error.strerror}") from error
    return target


def read_bundle(folder: str | Path) -> SchedulingPolicy | RoutingPolicy:
    """The policy in a bundle; raises ``InputError`` for anything but a well-formed one."""
    path = Path(folder)
    try:
        described = json.loads(_contents(path, POLICY), parse_constant=_constant)
    except OSError as error:
        raise InputError(f"no bundle at {str(path)!r}: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"bundle {str(path)!r}: {POLICY} is not JSON: {error}") from error
    try:
        return _build(path, described)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"bundle {str(path)!r}: {POLICY} is malformed: {error!r}") from error


def _contents(path: Path, name: str) -> bytes:
    """A file of the bundle; not one that a link takes from elsewhere, nor one without end."""
    try:
        file = (path / name).resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise InputError(f"bundle {str(path)!r}: {name} can't be read: {error}") from None
    if not file.is_relative_to(path.resolve()):
        raise InputError(f"bundle {str(path)!r}: {name} lies outside the bundle")
    return plain_bytes(file, "bundle's file", LARGEST)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no value")
    return float(name)  # protect_after may be Infinity


def _build(path: Path, described: dict[str, Any]) -> SchedulingPolicy | RoutingPolicy:
    if described["format"] not in range(1, FORMAT + 1):
        raise InputError(
            f"bundle {str(path)!r} has format {described['format']!r}; "
            f"this version reads 1 to {FORMAT}"
        )
    names = tuple(item["name"] for item in described["features"])
    if not names:
        raise InputError(f"bundle {str(path)!r} reads no feature")
    _types(described, name=str, tunables=dict)
    for item in described["features"]:
        unit = features.get(item["name"]).unit
        if item["unit"] != unit:
            raise InputError(
                f"bundle {str(path)!r}: feature {item['name']} is in {item['unit']!r}; "
                f"lengthwise has it in {unit!r}"
            )
    kind, how = described["kind"], described["score"]
    if kind not in ("scheduling", "routing"):
        raise UnknownNameError("bundle kind", str(kind), ("scheduling", "routing"))
    if how["type"] == "mlp":
        skip = how.get("skip", False)
        score = Score(described["name"], _read_mlp(path, how["layers"], len(names), skip), names)
    elif how["type"] == "blend":
        score = _read_blend(path, how["terms"]).score(described["name"])
        _require_features(path, "its terms read", score, names)
    elif how["type"] == "formula":
        score = _read_formula(path, how["text"]).score(described["name"])
        _require_features(path, "its formula reads", score, names)
    elif how["type"] == "registered":
        score = load_registered("policy" if kind == "scheduling" else "router", how["name"]).score
        _require_features(path, f"{how['name']} reads", score, names)
        score = score.with_tunables(described["tunables"])
    else:
        raise UnknownNameError(
            "score type", str(how["type"]), ("mlp", "blend", "formula", "registered")
        )
    trained_on = _trained_on(path, described.get("trained_on"))
    if kind == "routing":
        _types(described, choices=int)
        return RoutingPolicy(score, described["choices"], str(path), trained_on)
    preemption, admission = described["preemption"], described["admission"]
    _types(
        preemption, mode=str, price=float, overhead_tokens=int, margin=float, max_per_step=int,
        protect_after=float,
    )  # fmt: skip
    _types(admission, reserve=float, by=str, of=str)
    guard = described.get("guard")
    if guard is not None:
        _types(guard, ratio=float, floor_s=float)
        if described["format"] == 1 and guard["ratio"] == 0:  # which said nothing in that format
            guard = None
    if described["queue"] not in ("fcfs", "priority"):
        raise UnknownNameError("queue", described["queue"], ("fcfs", "priority"))
    return SchedulingPolicy(
        score,
        Preemption(**preemption),
        Admission(**admission),
        None if guard is None else Guard(**guard),
        queue=described["queue"],
        label=str(path),
        trained_on=trained_on,
    )


def _require_features(path: Path, told: str, score: Score, names: tuple[str, ...]) -> None:
    if score.features != names:
        raise InputError(
            f"bundle {str(path)!r}: {told} {', '.join(score.features)}, not {', '.join(names)}"
        )


def _read_blend(path: Path, terms: list[dict[str, Any]]) -> Blend:
    for term in terms:
        _types(term, name=str, weight=float)
    try:
        return Blend(
            tuple(term["name"] for term in terms), tuple(float(term["weight"]) for term in terms)
        )
    except UnknownNameError:
        raise
    except (InputError, OverflowError) as error:
        raise InputError(f"bundle {str(path)!r}: {error}") from None


def _read_formula(path: Path, text: Any) -> Formula:
    """It is parsed and never evaluated as Python; finite whatever features are."""
    try:
        formula = Formula(of_text(text))
        limits(formula.tree)
    except UnknownNameError:
        raise
    except InputError as error:
        raise InputError(f"bundle {str(path)!r}: {error}") from None
    return formula


def _as_data(policy: SchedulingPolicy | RoutingPolicy) -> SchedulingPolicy | RoutingPolicy:
    """A function of the user's own that is one formula, as that; everything else as it is."""
    score = policy.score
    if isinstance(score.function, MLP | Blend | Formula) or _name_of(policy) is not None:
        return policy
    formula = read(score.function, score.tunables)
    if formula is None:
        return policy
    limits(formula.tree)
    made = Score(score.name, formula, formula.features)
    return dataclasses.replace(policy, score=made)


def _trained_on(path: Path, said: dict[str, Any] | None) -> TrainedOn | None:
    if said is None:
        return None
    for name, span in said["ranges"].items():
        if not isinstance(span, list) or len(span) != 2:
            raise TypeError(f"the range of {name} must be two numbers, not {span!r}")
        _types(dict(zip(("low", "high"), span, strict=True)), low=float, high=float)
    for name in said["workloads"]:
        _types({"workload": name}, workload=str)
    try:
        return TrainedOn.of({k: (v[0], v[1]) for k, v in said["ranges"].items()}, said["workloads"])
    except InputError as error:
        raise InputError(f"bundle {str(path)!r}: {error}") from None


def _types(values: dict[str, Any], **wanted: type) -> None:
    """Raises ``TypeError`` unless each named value has its type; whole numbers may be floats."""
    for name, kind in wanted.items():
        value = values[name]
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{name} must be {kind.__name__}, not {value!r}")
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise TypeError(f"{name} must be at most {LARGEST_NUMBER}, not {value!r}")


def _name_of(policy: SchedulingPolicy | RoutingPolicy) -> str | None:
    """What it is registered as."""
    from lengthwise import registry

    kind = "policy" if isinstance(policy, SchedulingPolicy) else "router"
    for name in registry.names(kind):
        found = registry.load(kind, name).score
        if (found.function, found.name) == (policy.score.function, policy.score.name):
            return name
    return None


def _registered(policy: SchedulingPolicy | RoutingPolicy) -> str:
    name = _name_of(policy)
    if name is None:
        raise InputError(
            f"policy {policy.name!r} is a Python function; a bundle holds no code, so only "
            "registered and learned policies can be exported, and functions that return one "
            "formula of features, numbers, + - * /, np.minimum, np.maximum and np.sqrt"
        )
    return name


def _tensors(mlp: MLP) -> dict[str, Any]:
    tensors: dict[str, Any] = {"shift": mlp.shift, "scale": mlp.scale, "log": mlp.log}
    if mlp.skip is not None:
        tensors["skip"] = mlp.skip
    for i, (weight, bias) in enumerate(mlp.layers):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
    return {key: np.ascontiguousarray(value) for key, value in tensors.items()}


def _read_mlp(path: Path, layers: int, width: int, skip: bool) -> MLP:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(_contents(path, WEIGHTS))
        mlp = MLP(
            tensors["shift"].astype(np.float64),
            tensors["scale"].astype(np.float64),
            tensors["log"].astype(bool),
            tuple(
                (
                    tensors[f"layers.{i}.weight"].astype(np.float64),
                    tensors[f"layers.{i}.bias"].astype(np.float64),
                )
                for i in range(layers)
            ),
            tensors["skip"].astype(np.float64) if skip else None,
        )
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"bundle {str(path)!r}: bad {WEIGHTS}: {error}") from error
    inputs, fits = width, bool(layers)
    for weight, bias in mlp.layers:
        fits &= weight.ndim == 2 and weight.shape[1] == inputs and bias.shape == weight.shape[:1]
        inputs = weight.shape[0] if weight.ndim == 2 else -1
    linear = () if mlp.skip is None else (mlp.skip,)
    fits &= all(t.shape == (width,) for t in (mlp.shift, mlp.scale, mlp.log, *linear))
    if not fits or inputs != 1:
        raise InputError(f"bundle {str(path)!r}: {WEIGHTS} does not fit {width} features")
    if not all(np.isfinite(t).all() for t in (mlp.shift, mlp.scale, *sum(mlp.layers, ()), *linear)):
        raise InputError(f"bundle {str(path)!r}: {WEIGHTS} holds NaN or infinite values")
    if not mlp.scale.all():
        raise InputError(f"bundle {str(path)!r}: {WEIGHTS} has a scale of 0")
    return mlp
