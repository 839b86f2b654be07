"""The table of terms: what a new row needs, and that both engines add it up alike."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lengthwise.errors import UnknownNameError
from lengthwise.protocols import Batch
from lengthwise.serving.fast.tables import sum_of_terms
from lengthwise.serving.timing.model import TimingTables
from lengthwise.serving.timing.terms import QUANTITIES, TERMS

# A term of each clock that no timing here has, with a coefficient: a row, and nothing else.
NOVEL = """
import dataclasses
import numpy as np
from lengthwise.serving.timing.terms import TERMS, Term

TERMS["expert_load"] = Term("expert_load", "gpu", "prefill_tokens", "mixed", "of a test", False)
TERMS["adapters"] = Term("adapters", "update", "sequences", "any", "of a test", False)

import lengthwise as lw
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Node, System, run
from lengthwise.serving.timing import timing

profile = timing("h200/llama-3.1-8b")
dear = dataclasses.replace(
    profile, terms={**profile.terms, "expert_load": 3e-5, "adapters": 2e-5}
)
rng = np.random.default_rng(0)
workload = lw.Workload({
    "arrival_s": np.cumsum(rng.exponential(0.01, 200)),
    "prompt_tokens": rng.integers(1, 900, 200), "output_tokens": rng.integers(1, 40, 200),
})
for overlapped in (False, True):
    finish = [
        run(
            workload,
            System(
                (Node(lw.Engine(async_scheduling=overlapped), one, load_policy("fcfs")),),
                load_router("jsq"),
            ),
            backend=backend,
        ).finish_ps
        for one in (profile, dear)
        for backend in ("reference", "fast")
    ]
    assert (finish[0] == finish[1]).all() and (finish[2] == finish[3]).all()
    assert (finish[2] > finish[0]).mean() > 0.9
print("alike")
"""


def test_a_row_and_a_coefficient_reach_both_engines() -> None:
    done = subprocess.run([sys.executable, "-c", NOVEL], capture_output=True, text=True)
    assert done.stdout.strip() == "alike", done.stderr


def test_a_coefficient_of_no_term_is_refused() -> None:
    ones = np.ones(3, dtype=np.int64)
    with pytest.raises(UnknownNameError, match="did you mean 'chunk_context'"):
        TimingTables(ones, ones, {"chunk_contexts": 1})


def test_every_term_multiplies_something_that_is_counted() -> None:
    for name, term in TERMS.items():
        assert (term.name, term.times in QUANTITIES) == (name, True)
        assert term.meaning and term.unit


def test_a_sum_says_which_quantity_it_lacks() -> None:
    with pytest.raises(AssertionError, match="schedule_seq multiplies running"):
        sum_of_terms("clock", "schedule", sequences="sequences")


def test_an_iteration_is_the_sum_of_its_terms() -> None:
    terms = {"context": 2, "mixed_context": 3, "chunk_context": 5, "decode_seq": 7,
             "prefill_seq": 11, "floor": 1000, "floor_seq": 100}  # fmt: skip
    tables = TimingTables(np.arange(10) * 10**4, np.arange(20) * 10**6, terms)
    assert tables.iteration_ps(Batch(decode_seqs=4, context_tokens=9)) == 4 * 10**4 + 2 * 9
    mixed = Batch(
        prefill_tokens=6, prefill_seqs=2, decode_seqs=4, context_tokens=9, chunk_context=8
    )
    assert tables.iteration_ps(mixed) == 10 * 10**6 + 3 * 9 + 5 * 8 + 7 * 4 + 11 * 2
    assert TimingTables(0 * tables.decode_ps, tables.mixed_ps, terms).iteration_ps(
        Batch(decode_seqs=4)
    ) == 1000 + 4 * 100  # fmt: skip
