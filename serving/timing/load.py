"""Timing models by name: measured profiles, rooflines, files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.protocols import TimingModel
from lengthwise.serving.timing.profile import ProfileTiming, read_profile
from lengthwise.serving.timing.roofline import RooflineTiming, gpus, roofline

FACTORS = ("gpu", "cpu")
Factored = TypeVar("Factored", ProfileTiming, RooflineTiming)
PROFILES = {
    "h100/llama-3.2-3b": "h100_llama-3.2-3b.json",
    "h100/llama-3.1-8b": "h100_llama-3.1-8b.json",
    "h100/qwen2.5-14b": "h100_qwen2.5-14b.json",
    "h100/qwen2.5-32b": "h100_qwen2.5-32b.json",
    "h200/llama-3.2-3b": "h200_llama-3.2-3b.json",
    "h200/llama-3.1-8b": "h200_llama-3.1-8b.json",
    "h200/qwen2.5-14b": "h200_qwen2.5-14b.json",
    "h200/qwen2.5-32b": "h200_qwen2.5-32b.json",
}


def timing(name: str) -> TimingModel:
    """The timing model called ``name``.

    ``h200/llama-3.1-8b`` is a profile measured on a GPU; ``h200/llama-3.1-8b@0.26.0`` refuses one
    that another engine version was measured on. With ``:gpu=0.98,cpu=1.5`` the GPU takes 0.98 times
    as long as the one that was measured, and the CPU 1.5 times as long to launch an iteration as at
    its best while measured: ``lengthwise calibrate`` finds both.

    ``roofline:GPU/MODEL`` is an estimate from datasheets (``roofline:2xh100/llama-3.1-70b`` on two
    GPUs; MODEL may be the path to a ``config.json``), of a host as they are on average, or with the
    same factors. ``live:MODEL`` measures on the GPU at hand,
    ``live:MODEL@cpu`` on the CPU.

    Anything that ends in ``.json`` is a profile's file.
    """
    if name.startswith("roofline:"):
        spec, _, option = name.removeprefix("roofline:").partition(":")
        return _with_factors(roofline(spec), option)
    if name.startswith("live:"):
        from lengthwise.serving.timing.measure_torch import live  # needs torch

        return live(name.removeprefix("live:"))
    measured, _, option = name.partition(":")
    plain, _, version = measured.partition("@")
    if plain in PROFILES:
        return _with_factors(shipped(plain, version or None), option)
    if measured.endswith(".json"):
        return _with_factors(read_profile(Path(measured)), option)
    if plain.partition("/")[0] in gpus() and "/" in plain:
        raise InputError(
            f"no profile of {plain!r} (measured: {', '.join(PROFILES)}); "
            f"roofline:{plain} is an estimate"
        )
    raise UnknownNameError("timing", name, timing_names())


def _with_factors(profile: Factored, option: str) -> Factored:
    """``gpu=FACTOR,cpu=FACTOR``, either, or nothing."""
    if not option:
        return profile
    factors: dict[str, float] = {}
    for part in option.split(","):
        key, _, value = part.partition("=")
        try:
            factors[key] = float(value)
        except ValueError:
            key = ""
        if key not in FACTORS:
            raise InputError(f"a timing takes the options gpu=FACTOR,cpu=FACTOR, not {option!r}")
    return profile.with_factors(**factors)


def shipped(name: str, engine_version: str | None = None) -> ProfileTiming:
    """A profile that ships, by name."""
    path = Path(str(files("lengthwise.serving.timing").joinpath("data", PROFILES[name])))
    return read_profile(path, engine_version)


def gpu_of(name: str) -> str | None:
    """The short name of the GPU that a timing is of, None where it names none that is known."""
    if name.startswith("live:"):
        return None
    if name.partition(":")[0].endswith(".json"):
        measured = str(read_profile(Path(name.partition(":")[0])).about.get("gpu", "")).lower()
        return next((short for short in gpus() if short in measured), None)
    device = name.removeprefix("roofline:").partition("/")[0]
    short = device.rpartition("x")[2] if device[:1].isdigit() and "x" in device else device
    return short if short in gpus() else None


def timing_on(gpu: str, name: str) -> str:
    """The timing of ``name``'s model on another GPU (``h100``, ``2xa100``): as it was measured
    there, or the roofline's estimate. Raises ``InputError`` for a timing that names no model.
    """
    model = name.removeprefix("roofline:").partition("/")[2].partition(":")[0].partition("@")[0]
    if not model or name.startswith("live:") or model.endswith(".json"):
        raise InputError(f"--gpu is of a timing that names a model, and {name!r} names none")
    return f"{gpu}/{model}" if f"{gpu}/{model}" in PROFILES else f"roofline:{gpu}/{model}"


def timing_names() -> list[str]:
    """The measured profiles, and how the others are spelled."""
    return [*PROFILES, "roofline:GPU/MODEL", "live:MODEL"]
