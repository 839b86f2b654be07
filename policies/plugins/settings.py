"""What a plugin is configured with: ``{"policy": "srtf", "predictor": "DIR", ...}``."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.features import reads_prediction
from lengthwise.policies.bundle import PREDICTOR
from lengthwise.policies.load import load_policy
from lengthwise.policies.plugins import client
from lengthwise.policy import Guard, SchedulingPolicy
from lengthwise.starvation import UNKNOWN_TOKENS

LAST_PORT = 65535


@dataclass(frozen=True)
class Settings:
    """One engine's configuration; ``parse`` reads it from JSON-like data.

    ``guard`` bounds waiting: a request that waited longer than ``guard`` times the longest wait
    that first come, first served would have caused lately goes first (0 switches the guard off).
    """

    policy: str = ""
    bundle: str = ""  # an exported policy; its folder "predictor" is used unless another is named
    predictor: str = ""  # a folder that a predictor was saved to
    default_tokens: float = UNKNOWN_TOKENS  # predicted length where nobody says anything
    guard: float = Guard.ratio  # where the policy says nothing of one; 0 is off, in either
    guard_floor_s: float = Guard.floor_s  # nobody goes first for a wait shorter than this
    predict_timeout_s: float = 0.5  # per request, from its arrival in the scheduler
    policy_timeout_s: float = 0.1  # one evaluation of the score; slow thrice, it is switched off
    client_lengths: bool = True  # believe the lengths that clients send; false asks the predictor
    record: str = ""  # a folder: finished requests and their true lengths are appended to it
    record_prompts: bool = False  # with their prompts' token ids, else with a hash of them
    metrics_port: int = 0  # serve Prometheus metrics of the plugin there, + the engine's rank
    metrics_host: str = "127.0.0.1"  # of which address
    given: frozenset[str] = field(default=frozenset(), repr=False)  # what was said; no setting

    @classmethod
    def parse(
        cls, given: Any, uses: Collection[str] | None = None, engine: str = "lengthwise"
    ) -> Settings:
        """Checks names and types; raises ``InputError`` with one clear line.

        ``uses`` are the settings that have an effect in ``engine``, all by default; others are
        refused by name.
        """
        if not isinstance(given, Mapping):
            raise InputError(f"lengthwise takes an object of settings, not {client.shown(given)}")
        fields: dict[str, Any] = {
            f.name: f.default for f in dataclasses.fields(cls) if f.name != "given"
        }
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in fields:
                raise UnknownNameError("lengthwise setting", str(name), uses or fields)
            if uses is not None and name not in uses:
                raise InputError(
                    f"lengthwise setting {name} has no effect in {engine}; "
                    f"these have: {', '.join(sorted(uses))}"
                )
            kind = type(fields[name])
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = client.number(value)  # None for one that no float holds
            if type(value) is not kind:
                said = client.shown(given[name])
                raise InputError(f"lengthwise setting {name} takes {kind.__name__}, not {said}")
            if kind is not str and not value >= 0:
                raise InputError(
                    f"lengthwise setting {name} must be 0 or more, not {client.shown(value)}"
                )
            values[name] = value
        settings = cls(**values, given=frozenset(values))
        if bool(settings.policy) == bool(settings.bundle):
            raise InputError("lengthwise takes either a policy or a bundle")
        if settings.default_tokens < 1:
            raise InputError("lengthwise setting default_tokens must be 1 or more")
        if settings.metrics_port > LAST_PORT:
            raise InputError(
                f"lengthwise setting metrics_port must be {LAST_PORT} or less, "
                f"not {client.shown(settings.metrics_port)}"
            )
        return settings

    def refuse_idle(self, policy: SchedulingPolicy) -> None:
        """Raises ``InputError`` for a setting that was given and has no effect beside the others.

        What is said to be off (0, false) may be said anywhere.
        """
        stock = policy.queue == "fcfs"
        guarded = not stock and self.guard_of(policy).ratio > 0
        reads = not stock and (guarded or reads_prediction(policy.score.features))
        predicts, counts = bool(self.predictor_folder), not stock or bool(self.record)
        idle = {
            "guard": stock and "policy fcfs starves nobody",
            "guard_floor_s": not guarded and "there is no starvation guard",
            "policy_timeout_s": stock and "policy fcfs evaluates nothing",
            "default_tokens": not reads and "nothing reads predicted lengths",
            "predict_timeout_s": not predicts and "there is no predictor",
            "record_prompts": not self.record and "there is no record",
            "metrics_port": not (counts or predicts) and "stock fcfs counts nothing",
            "metrics_host": not self.metrics_port and "there is no metrics_port",
        }
        for name, why in idle.items():
            if why and name in self.given and getattr(self, name):
                raise InputError(f"lengthwise setting {name} has no effect: {why}")
        if "guard" in self.given and self.guard != self.guard_of(policy).ratio and not stock:
            raise InputError(
                f"lengthwise setting guard has no effect: policy {self.policy or self.bundle!r} "
                "says one of its own"
            )

    def load(self) -> SchedulingPolicy:
        """The policy; raises ``InputError`` for one that doesn't exist or is malformed."""
        if self.bundle and not Path(self.bundle).is_dir():
            raise InputError(f"no bundle at {self.bundle!r}: not a folder")
        return load_policy(self.bundle or self.policy)

    def guard_of(self, policy: SchedulingPolicy) -> Guard:
        """The starvation guard: the policy says, and where it says nothing, the settings do."""
        return Guard(self.guard, self.guard_floor_s) if policy.guard is None else policy.guard

    @property
    def predictor_folder(self) -> str:
        """The predictor's folder; empty if there is none."""
        inside = Path(self.bundle) / PREDICTOR
        if self.predictor or not self.bundle or not inside.is_dir():
            return self.predictor
        return str(inside)
