"""Settings of a plugin, judged before a server starts by what the plugin itself refuses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.plugins import client, sglang
from lengthwise.policies.plugins.saved import saved_predictor
from lengthwise.policies.plugins.settings import Settings
from lengthwise.policies.plugins.vllm.announce import described
from lengthwise.policies.plugins.vllm.driver import VALUES
from lengthwise.policies.plugins.vllm.scheduling import refuse

KEY = "lengthwise"  # of vLLM's --additional-config
# what a server of vLLM's is where its command line says nothing
STOCK = SimpleNamespace(
    scheduler_config=SimpleNamespace(policy="fcfs"),
    kv_transfer_config=None,
    parallel_config=SimpleNamespace(pipeline_parallel_size=1),
)


@dataclass(frozen=True)
class CheckedSettings:
    """Settings that a plugin takes: what it will run, as its server would say, and what was odd."""

    engine: str
    runs: str
    settings: Settings
    notices: tuple[str, ...] = ()


def check_settings(given: Any, engine: str = "vllm") -> CheckedSettings:
    """Judges settings as ``engine``'s plugin does on a server with defaults otherwise.

    ``given`` is what ``--additional-config`` takes, ``{"lengthwise": {...}}``, or the settings
    alone, as ``LENGTHWISE_VLLM`` and ``LENGTHWISE_SGLANG`` hold them. Raises ``InputError`` with
    the line that the plugin would raise; a predictor is loaded, and nothing is left
    behind.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine of a plugin", engine, ENGINES)
    inner, notices = _inner(given)
    settings, runs = ENGINES[engine](inner)
    if settings.predictor_folder:
        saved_predictor(settings.predictor_folder)
    if settings.record:
        _refuse_unwritable(settings.record)
    return CheckedSettings(engine, ", ".join(runs), settings, notices)


def _vllm(given: Any) -> tuple[Settings, list[str]]:
    settings = Settings.parse(given)
    policy = settings.load()
    refuse(STOCK, policy)
    settings.refuse_idle(policy)
    if policy.queue != "fcfs":
        VALUES.require(policy.score.features, f"policy {policy.name!r}")
    return settings, described(settings, policy)


def _sglang(given: Any) -> tuple[Settings, list[str]]:
    settings = sglang.checked(given)
    policy = settings.load()
    order = "policy fcfs (SGLang's own order)"
    if policy.queue != "fcfs":
        sglang.Priorities(settings)
        order = f"policy {settings.bundle or settings.policy} (score {policy.name})"
    beside = [
        f"predictor {settings.predictor_folder or 'none'}",
        f"record {settings.record or 'none'}",
    ]
    return settings, [order, *beside]


# what each judges its settings by, and says of them
ENGINES: Mapping[str, Callable[[Any], tuple[Settings, list[str]]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
}


def _inner(given: Any) -> tuple[Any, tuple[str, ...]]:
    """The settings, out of an additional config that may hold others' keys beside them."""
    if not isinstance(given, Mapping):
        raise InputError(f"lengthwise takes an object of settings, not {client.shown(given)}")
    if KEY in given:
        others = ", ".join(sorted(str(name) for name in given if name != KEY))
        return given[KEY], (f"not lengthwise's, and not checked: {others}",) if others else ()
    for name, value in given.items():
        if isinstance(value, Mapping):  # no setting is an object
            raise UnknownNameError("key in the additional config", str(name), (KEY,))
    return given, ()


def _refuse_unwritable(folder: str) -> None:
    there = Path(folder).absolute()
    try:
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryDirectory(dir=there, prefix=".lengthwise-"):
            pass  # root passes every question for permission, so try
    except OSError as error:
        raise InputError(
            f"lengthwise setting record: can't write to {folder!r}: {error.strerror}"
        ) from None
