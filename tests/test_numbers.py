"""Numbers that were chosen once: by a measurement, a library's own, or what the docs promise.

Who changes one changes what was measured with it, and says so here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

POLICIES: dict[str, dict[str, Any]] = {
    "bundle": {"FORMAT": 3, "LARGEST_NUMBER": 2**63 - 1, "LARGEST": 64 * 2**20},
    "learned": {"NUMBERS": 8192},
    "plugins.accuracy": {
        "WINDOW": 256, "EVERY": 50, "FEWEST": 50, "DRIFTED": -2.0, "LEVEL": 0.9, "MISSED": 0.75,
    },
    "plugins.budget": {"TIMES": 3, "WINDOW_S": 600.0},
    "plugins.calls": {"MOST": 2.0**53, "CHARACTERS_PER_TOKEN": 4.0},
    "plugins.gateways.answer": {"TAIL": 16_384},
    "plugins.gateways.endpoints": {"MOST": 10_000},
    "plugins.gateways.ext_proc": {"MOST_MESSAGE": 65_536},
    "plugins.gateways.picker": {
        "FORGET_AFTER": 5, "DOWN": (502, 503, 504), "READ_BODY": 32 * 2**20,
    },
    "plugins.gateways.prefixes": {"BLOCK": 16, "MOST_BLOCKS": 50_000, "LONGEST": 4096},
    "plugins.gateways.scrape": {"MOST_BYTES": 8 * 2**20},
    "plugins.gateways.server": {"LOOK_S": 0.1},
    "plugins.known": {"LONGEST": 200},
    "plugins.litellm": {"MOST_CALLS": 100_000},
    "plugins.metrics": {
        "SECONDS": (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        "LENGTHS": (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536),
    },
    "plugins.part": {"PART_ROWS": 5000, "PART_TOKENS": 4 * 2**20, "PART_S": 300.0},
    "plugins.predicting": {"TOLD": 3, "BATCH": 64},
    "plugins.predictor_process": {
        "START_S": 120.0, "STUCK_S": 10.0, "BACKLOG": 4096, "LOOK_S": 0.2, "LONGEST_LINE": 65536,
    },
    "plugins.priority": {"LARGEST": 2**31 - 1},
    "plugins.ray_serve": {"MOST_CALLS": 100_000},
    "plugins.record": {"ROWS": 1000, "FLUSH_S": 2.0, "BACKLOG_TOKENS": 16 * 2**20},
    "plugins.routing": {"LOST_S": 1800.0},
    "plugins.scorer": {"SLOW_ALLOWED": 3},
    "plugins.settings": {"LAST_PORT": 65535},
    "plugins.threads": {"LOOK_S": 0.5, "STUCK_S": 10.0, "AT_ONCE": 4},
    "plugins.vllm.clock": {"JUMP_S": 1.0, "ON_THE_WAY_S": 60.0},
    "plugins.waits": {"WINDOW": 1000, "EVERY": 100},
}  # fmt: skip
PREDICTORS: dict[str, dict[str, Any]] = {
    "base": {"MAX_TOKENS": 128, "PRIOR_ROWS": 40.0, "TRUST": 0.5},
    "baseline": {"SHIFT": 0.23},
    "boosting": {
        "ITERATIONS": 100, "QUANTILE_ITERATIONS": 60, "MANY_ROWS": 10_000, "MOST_ROWS": 40_000,
        "OPTIONS": {
            "learning_rate": 0.08, "max_leaf_nodes": 8, "l2_regularization": 5.0,
            "early_stopping": False,
        },
    },
    "censoring": {"ROUNDS": 30, "TOLERANCE": 1e-3},
    "columns": {"FEWEST": 10},
    "effects": {
        "MOST_NAMES": 1000, "FEWEST": 2, "ROUNDS": 3, "EM_ROUNDS": 40, "PENALTY": 3.0, "FAR": 3.0,
    },
    "encoder": {"NEW_VOCABULARY": 8000, "BATCH": 32, "PADDED": 1.125, "NEAR": 4},
    "features": {
        "GRAMS": (1, 2, 3), "VERSION": 2, "MAX_TERMS": 20_000, "SHAPE_WEIGHT": 0.1, "LIMIT": 0.5,
    },
    "folder": {"FORMAT": 1},
    "heads": {"LEAST_DF": 1.5},
    "learned": {"FOLDS": 5, "ROUNDS": 3},
    "losses": {"MARGIN_GAP": 0.1},
    "novelty": {
        "ABSTAIN": 0.95, "FAMILIAR": 0.8, "SHIFT": 0.3, "REACH": 1.8, "SHIFTING": 2 / 3,
        "WINDOW": 256, "FEWEST": 50, "KNOWN": 2, "LIMIT": 3.0,
    },
    "optimize": {"UNSEEN_BATCH": 256},
    "oracle": {"GAMMA": 0x9E3779B97F4A7C15, "CALIBRATION_ROWS": 50_000},
    "probe": {"FORMAT": 1},
    "recalibration": {"FEWEST": 30, "PENALTY": 10.0, "FLATTEST": 0.1},
    "sound": {
        "MOST_JSON_BYTES": 64 * 2**20, "MOST_LAYERS": 1000, "MOST_SIZE": 2**31 - 1,
        "MOST_BYTES": 8 * 2**30,
    },
    "spreads": {"CELLS": 8, "TOP": 0.01, "FEWEST": 20, "LARGEST_TAIL": 0.5},
    "targets": {
        "PERCENTILES": (25.0, 50.0, 75.0, 99.0), "MOST_BUCKETS": 10_000,
        "LEVELS": (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99),
    },
    "text": {"ALPHAS": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "COMPONENTS": 48, "MANY": 20_000},
}  # fmt: skip


@pytest.mark.parametrize("module", [*(f"policies.{n}" for n in POLICIES),
                                    *(f"predictors.{n}" for n in PREDICTORS)])  # fmt: skip
def test_a_number_that_was_chosen_is_that_number(module: str) -> None:
    package, _, name = module.partition(".")
    wanted = {"policies": POLICIES, "predictors": PREDICTORS}[package][name]
    try:
        there = import_module(f"lengthwise.{module}")
    except ImportError as error:
        pytest.skip(f"needs {error.name}")
    assert {name: getattr(there, name) for name in wanted} == wanted
