"""How far a fitted model is from recorded iterations, by regime."""

from __future__ import annotations

import numpy as np

from lengthwise.serving.timing import fit as fitting
from lengthwise.serving.timing.fit import Bools, Fit, Floats, Iterations


def predicted_s(iterations: Iterations, fit: Fit, *, mean_speed: bool = False) -> Floats:
    """When each result is seen (s), given when all were scheduled and the one before was seen.

    With ``mean_speed`` the CPU has one speed, as in the simulator; without, that of each window.
    """

    def split(knots: list[tuple[int, float]]) -> tuple[Floats, Floats]:
        pairs = np.array(knots)
        return pairs[:, 0], pairs[:, 1]

    (sizes, bases), (seqs, slopes) = split(fit.decode), split(fit.decode_context)
    tokens, mixed_bases = split(fit.mixed)
    decode = fitting.decode_columns(iterations, sizes, seqs) @ np.append(bases, slopes)
    mixed_terms = [fit.terms[name] for name in fitting.MIXED]
    mixed = fitting.mixed_columns(iterations, tokens) @ np.append(mixed_bases, mixed_terms)
    window = fitting.windows(iterations)
    speed = fit.speeds.mean() if mean_speed else fit.speeds[window]
    cpu = np.array([fit.terms[name] for name in fitting.CPU])
    prepare, launch = fitting.cpu_seconds(iterations, cpu, np.broadcast_to(speed, window.shape))
    seen, *_ = fitting.pipeline(
        iterations.scheduled, iterations.seen, np.where(iterations.decode, decode, mixed),
        prepare, launch, fit.terms["tail"], iterations.overlaps, iterations.decode,
    )  # fmt: skip
    return seen


def regimes(iterations: Iterations) -> dict[str, Bools]:
    """Which iterations are of which kind."""
    decoding = (iterations.frame["decode_seqs"] > 0).to_numpy()
    mixed = ~iterations.decode & decoding
    return {
        "decode": iterations.decode,
        "prefill": ~iterations.decode & ~decoding,
        "mixed, in CUDA graphs": mixed & ~iterations.eager,
        "mixed, without": mixed & iterations.eager,
    }


def errors(
    iterations: Iterations, fit: Fit, which: Bools, *, mean_speed: bool = False
) -> dict[str, dict[str, float]]:
    """Relative errors of iteration times by regime: mean and P95 of the absolute, and the bias."""
    off = predicted_s(iterations, fit, mean_speed=mean_speed) - iterations.seen
    table = {}
    for regime, members in regimes(iterations).items():
        chosen = members & which & iterations.usable
        if chosen.any():
            relative = np.abs(off[chosen]) / iterations.took[chosen]
            table[regime] = {
                "iterations": int(chosen.sum()),
                "mean": float(relative.mean()),
                "median": float(np.median(relative)),
                "p95": float(np.quantile(relative, 0.95)),
                "bias": float(off[chosen].sum() / iterations.took[chosen].sum()),
            }
    return table
