"""The parts of timing, each on numbers worked out by hand: rooflines, profiles, sums, the fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.picoseconds import MOST_PS, PS
from lengthwise.protocols import Batch
from lengthwise.serving.timing import (
    LinearTiming,
    build,
    measure,
    measure_torch,
    timing,
    vllm_plan,
)
from lengthwise.serving.timing import errors as regimes
from lengthwise.serving.timing import fit as fitting
from lengthwise.serving.timing.columns import COLUMNS
from lengthwise.serving.timing.config import ModelShape, model_shape
from lengthwise.serving.timing.load import gpu_of, timing_names
from lengthwise.serving.timing.model import Pipeline, TimingTables, whole_ps
from lengthwise.serving.timing.profile import (
    MEASURED,
    ProfileTiming,
    _line,
    capture_sizes,
    padded,
    read_profile,
)
from lengthwise.serving.timing.roofline import Constants, Estimates, Gpu, RooflineTiming, roofline
from lengthwise.serving.timing.speed import at_speed
from lengthwise.serving.timing.terms import TERMS, Sum, terms_of
from lengthwise.serving.timing.vllm_model import model_folder


def line_of(make: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        make()
    return str(caught.value)


# Shapes of models and rooflines

SMALL = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 10,
}  # fmt: skip


def shape(folder: Path, **changed: Any) -> ModelShape:
    path = folder / "config.json"
    path.write_text(json.dumps(SMALL | changed))
    return model_shape(str(path))


def test_a_model_s_parameters_by_hand(tmp_path: Path) -> None:
    made = shape(tmp_path)
    assert (made.head_dim, made.gated_mlp, made.tie_word_embeddings) == (2, True, False)
    # q and o are 8 x 8, k and v 8 x 4, three matrices of the MLP 8 x 16
    assert made.layer_parameters == 2 * 64 + 2 * 32 + 3 * 128
    assert made.parameters == 3 * 576 + 2 * 80
    # keys and values of 2 heads of 2 numbers of 2 bytes in 3 layers
    assert made.kv_bytes_per_token == 2 * 2 * 2 * 2 * 3
    plain = shape(tmp_path, gated_mlp=False, tie_word_embeddings=True, head_dim=5)
    assert plain.layer_parameters == 2 * 160 + 2 * 80 + 2 * 128
    assert plain.parameters == 3 * plain.layer_parameters + 80
    alone = shape(tmp_path, num_key_value_heads=None, max_position_embeddings=99)
    assert alone.num_key_value_heads == 4 and alone.max_position_embeddings == 99
    assert model_shape(str(tmp_path)).name == tmp_path.name
    for changed, said in (
        ({"hidden_size": None}, "lacks hidden_size"), ({"num_experts": 8}, "mixture of experts"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"vocab_size": 0}, "vocab_size must be a whole number from 1 to 2147483647, not 0"),
        ({"vocab_size": 2**31}, "vocab_size must be"), ({"head_dim": True}, "head_dim must be"),
        ({"head_dim": 1.5}, "head_dim must be"),
    ):  # fmt: skip
        assert said in line_of(lambda changed=changed: shape(tmp_path, **changed))
    assert shape(tmp_path, vocab_size=2**31 - 1).vocab_size == 2**31 - 1


ROUND = Constants(
    bandwidth=0.5, compute=0.25, sharpness=2.0, layer_s=1e-3, decode_attention=0.5,
    mixed_attention=0.25, prefill_attention=0.2, sequence_s=2**17 * 1e-4, prefill_sequence_s=3e-3,
)  # fmt: skip
HOST = {
    **{term: 0.0 for term in MEASURED if TERMS.get(term) is None or TERMS[term].part != "gpu"},
    "launch_decode": 7.0, "schedule": 0.5,
}  # fmt: skip
ESTIMATES = Estimates(
    ROUND, HOST, {"launch_graph": (1.0, 2.0), "launch_eager": (5.0, 10.0)}, 2.0, 0.06, 0.2,
    ("h200/llama-3.1-8b", "2xh100/llama-3.1-8b"),
)  # fmt: skip


def test_a_roofline_by_hand(tmp_path: Path) -> None:
    """A GPU of round numbers: what is read, what is multiplied and what is beside it."""
    model = shape(tmp_path)
    gpu = Gpu("round", 4e6, 2e6, 80.0, 1e3)
    one = RooflineTiming(model, gpu, known=ESTIMATES)
    found = one.pipeline(2000, 40)
    assert found.decode_ps.shape == (41,) and found.mixed_ps.shape == (2001,)
    head = 2 * 80 / 1e6  # the head is read
    # a layer's 576 numbers of 2 bytes are read at half of 2e6/s, multiplied at a quarter of 4e6/s
    for tokens, size in ((1, 1), (9, 16), (40, 40), (1000, 1024)):
        layer = math.hypot(2 * 576 / 1e6, 2 * 576 * size / 1e6) + 1e-3
        assert found.mixed_ps[tokens] / PS == pytest.approx(head + 3 * layer), tokens
    each = 10 * 1e-4  # a sequence of a vocabulary of ten words
    layer = math.hypot(2 * 576 / 1e6, 2 * 576 * 16 / 1e6) + 1e-3
    assert found.decode_ps[9] / PS == pytest.approx(head + 3 * layer + 16 * each)
    # 48 bytes of keys and values a token; four times 8 numbers of q, three layers, a pair
    assert set(found.decode_context_ps.tolist()) == {round(48 / 1e6 * PS)}
    assert found.terms["mixed_context"] == round(48 / 0.5e6 * PS)
    assert found.terms["chunk_context"] == round(4 * 4 * 2 * 3 / (4e6 * 0.2) * PS)
    assert found.terms["decode_seq"] == round(each * PS)
    assert found.terms["prefill_seq"] == round(3e-3 * PS)
    # the host: of three layers, its CPU twice as slow as at its best
    assert found.terms["launch_decode"] == 14 * PS and found.terms["schedule"] == PS // 2
    assert set(found.mixed_launch_ps[:81].tolist()) == {2 * (1 + 3 * 2) * PS}
    assert set(found.mixed_launch_ps[81:].tolist()) == {2 * (5 + 3 * 10) * PS}  # no graph
    slow = one.with_factors(gpu=3.0, cpu=1.0)
    assert slow.name == "roofline:gpu=3,cpu=1"
    assert slow.pipeline(2000, 40).mixed_ps[9] == pytest.approx(3 * found.mixed_ps[9])
    assert slow.pipeline(9, 9).terms["launch_decode"] == 7 * PS
    assert one.with_factors(cpu=4.0).pipeline(9, 9).terms["launch_decode"] == 28 * PS
    with pytest.raises(InputError, match="cpu must be above 0"):
        one.with_factors(cpu=0.0)


def test_a_roofline_of_several_gpus_by_hand(tmp_path: Path) -> None:
    model = shape(tmp_path)
    gpu = Gpu("round", 4e6, 2e6, 80.0, 1e3)
    two = RooflineTiming(model, gpu, 2, known=ESTIMATES).pipeline(10, 10)
    # half of each matrix; two all-reduces a layer of 8 tokens x 8 numbers x 2 bytes, ring of two
    layer = math.hypot(576 / 1e6, 576 * 8 / 1e6) + 1e-3
    exchange = 2 * (10e-6 + 2 * 8 * 8 * 2 * 1 / 2 / 1e3)
    assert two.mixed_ps[5] / PS == pytest.approx(80 / 1e6 + 3 * (layer + exchange))
    assert two.terms["mixed_context"] == round(24 / 0.5e6 * PS)
    assert two.terms["chunk_context"] == round(4 * 4 * 2 * 3 / (8e6 * 0.2) * PS)
    one = RooflineTiming(model, gpu, known=ESTIMATES)
    tables = one.tables(2000, 40)
    batch = Batch(prefill_tokens=3, prefill_seqs=1, decode_seqs=2, context_tokens=7)
    assert one.iteration_time(batch) == pytest.approx(tables.iteration_ps(batch) / PS)
    room = (80.0 * 0.92 - 1.3) * 2**30 - model.parameters * 2
    assert one.num_gpu_blocks == math.floor(room / (16 * 48))
    halves = (80.0 * 0.92 - 1.3) * 2**30 - model.parameters
    assert RooflineTiming(model, gpu, 2).num_gpu_blocks == math.floor(halves / (16 * 24))
    with pytest.raises(InputError, match=r"does not fit: its weights take 0.0 GiB a GPU"):
        _ = RooflineTiming(model, Gpu("tiny", 1e6, 1e6, 1.3, 1e3)).num_gpu_blocks


def test_what_an_estimate_says_of_itself(tmp_path: Path) -> None:
    gpu = Gpu("round", 4e6, 2e6, 80.0, 1e3)
    made = RooflineTiming(shape(tmp_path), gpu, name="roofline:2xh100/tiny", known=ESTIMATES)
    assert made.expected_error == (
        "roofline:2xh100/tiny is an estimate: of measured profiles that were left out of its fit, "
        "mean end-to-end latencies up to load 0.9 were off by 6%, at most 20%"
    )
    assert replace(made, name="roofline:l40s/tiny").expected_error.endswith(
        "at most 20%, and no l40s was measured"
    )
    assert ESTIMATES.gpus == ("h200", "h100")


def test_how_rooflines_are_spelled() -> None:
    assert roofline("2xh200/llama-3.1-8b").tensor_parallel == 2
    assert roofline("h200/llama-3.1-8b").name == "roofline:h200/llama-3.1-8b"
    slow: Any = timing("roofline:2xh100/llama-3.1-8b:gpu=1.1,cpu=2")
    assert (slow.gpu_factor, slow.cpu) == (1.1, 2.0)
    assert slow.name == "roofline:2xh100/llama-3.1-8b:gpu=1.1,cpu=2"
    assert slow.with_factors().name == "roofline:2xh100/llama-3.1-8b"
    for spec, said in (
        ("h200/", "spelled roofline:GPU/MODEL"), ("h200", "spelled roofline:GPU/MODEL"),
        ("0xh200/llama-3.1-8b", "do not divide over 0 GPUs"),
    ):  # fmt: skip
        assert said in line_of(lambda spec=spec: roofline(spec))


# Tables, terms and clocks


def test_sums_by_hand() -> None:
    terms = {"floor": 5, "floor_seq": 3, "context": 2, "mixed_context": 7, "chunk_context": 11,
             "decode_seq": 13, "prefill_seq": 17}  # fmt: skip
    made = TimingTables(np.array([0, 100, 200]), np.arange(10) * 1000, terms)
    decode = Batch(decode_seqs=2, context_tokens=9)
    assert made.iteration_ps(decode) == 200 + 2 * 9
    mixed = Batch(
        prefill_tokens=4, prefill_seqs=2, decode_seqs=1, context_tokens=9, chunk_context=6
    )
    assert made.iteration_ps(mixed) == 5000 + 7 * 9 + 11 * 6 + 13 * 1 + 17 * 2
    assert (
        made.iteration_ps(Batch()) == 5
        and TimingTables(*[np.zeros(3)] * 2).iteration_ps(Batch()) == 1
    )
    slow = TimingTables(np.zeros(9), np.zeros(9), {"floor": 5, "floor_seq": 3})
    assert slow.iteration_ps(Batch(decode_seqs=2)) == 5 + 3 * 2
    assert slow.iteration_ps(Batch(prefill_tokens=1, prefill_seqs=1, decode_seqs=2)) == 5 + 3 * 3
    assert Sum({"schedule": 4, "schedule_seq": 3}, "schedule").at(running=5) == 19
    assert Sum({"schedule": 4, "schedule_seq": 3}, "schedule").of(SimpleNamespace(running=5)) == 19
    assert [term.name for term in terms_of("launch", "decode")] == [
        "launch_decode", "launch_decode_seq",
    ]  # fmt: skip
    assert (TERMS["update"].unit, TERMS["context"].unit, TERMS["chunk_context"].unit) == (
        "s", "s/token", "s/pair",
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match="unknown timing term 'contexts'; did you mean"):
        TimingTables(np.zeros(1), np.zeros(1), {"contexts": 1})
    assert {name for name, term in TERMS.items() if not term.measured} == {
        "context", "floor", "floor_seq",
    }  # fmt: skip


def test_durations_are_rounded_and_have_an_end() -> None:
    assert whole_ps(np.array([0.6, 1.4, -0.6]), "x").tolist() == [1, 1, -1]
    assert whole_ps(np.array([MOST_PS, -MOST_PS]), "x").tolist() == [MOST_PS, -MOST_PS]
    for value in (MOST_PS * 1.001, math.inf, math.nan):
        with pytest.raises(InputError, match="x: an iteration takes longer than 9007 s"):
            whole_ps(np.array([0, value]), "x")


def test_two_clocks_by_hand() -> None:
    terms = {
        "context": 1, "mixed_context": 2, "chunk_context": 3, "decode_seq": 5, "prefill_seq": 7,
        "launch_decode": 11, "launch_decode_seq": 13, "launch_mixed_seq": 17,
        "launch_prefill_seq": 19, "prepare": 23, "prepare_seq": 29, "tail": 31, "schedule": 37,
        "schedule_seq": 41, "update": 43, "update_seq": 47, "arrival": 53, "arrival_token": 59,
        "output": 61, "output_seq": 67,
    }  # fmt: skip
    made = Pipeline(
        np.array([0, 100, 200]), np.array([0, 4, 6]), np.arange(9) * 1000, np.arange(9) * 10, terms
    )
    decode = Batch(decode_seqs=2, context_tokens=9)
    mixed = Batch(
        prefill_tokens=4, prefill_seqs=2, decode_seqs=1, context_tokens=9, chunk_context=6
    )
    assert made.gpu_ps(decode) == 200 + 6 * 9 + 9
    assert made.gpu_ps(mixed) == 5000 + 2 * 9 + 3 * 6 + 5 + 7 * 2
    assert made.launch_ps(decode) == 11 + 13 * 2
    assert made.launch_ps(mixed) == 50 + 17 * 3 + 19 * 2
    assert made.prepare_ps(decode) == 37 and made.prepare_ps(mixed) == 23 + 29 * 3
    assert made.tail_ps(mixed) == 31 and made.update_ps(mixed) == 43 + 47 * 3
    assert made.schedule_ps(3) == 37 + 41 * 3 and made.output_ps(3) == 61 + 67 * 3
    assert made.arrival_ps(np.array([0, 3])).tolist() == [53, 53 + 59 * 3]
    still = Pipeline(*[np.zeros(3, np.int64)] * 4, {"arrival": 4})
    assert still.arrival_ps(np.array([1, 2])).tolist() == [4, 4]


def test_a_node_at_another_speed_by_hand() -> None:
    plain = LinearTiming(1.0, 0.5, 0.25, 1e-3, num_gpu_blocks=7)
    half = at_speed(plain, 0.5)
    assert at_speed(plain, 1) is plain and half.name == "linear at 0.5" and half.num_gpu_blocks == 7
    batch = Batch(prefill_tokens=2, prefill_seqs=1, decode_seqs=1, context_tokens=10)
    assert half.iteration_time(batch) == 2 * plain.iteration_time(batch)
    tables, own = half.tables(4, 4), plain.tables(4, 4)  # type: ignore[attr-defined]
    assert (tables.decode_ps == 2 * own.decode_ps).all()
    assert (tables.mixed_ps == 2 * own.mixed_ps).all()
    assert tables.terms == {name: 2 * ps for name, ps in own.terms.items()}
    assert not hasattr(half, "pipeline")
    profile = timing("h200/llama-3.1-8b")
    slow = at_speed(profile, 0.25)
    mine, theirs = slow.pipeline(64, 8), profile.pipeline(64, 8)  # type: ignore[attr-defined]
    for name in ("decode_ps", "decode_context_ps", "mixed_ps", "mixed_launch_ps"):
        assert (getattr(mine, name) == 4 * getattr(theirs, name)).all()
    assert mine.terms == {name: 4 * ps for name, ps in theirs.terms.items()}
    for speed in (0, -1, math.inf, math.nan, True, "1", 10**400):
        with pytest.raises(InputError, match="a node's speed must be a number above 0"):
            at_speed(plain, speed)  # type: ignore[arg-type]
    live: Any = SimpleNamespace(name="live")
    assert at_speed(live, 1.0) is live
    with pytest.raises(InputError, match="timing 'live' has no tables, so it can't be slowed down"):
        at_speed(live, 2.0)


def test_linear_tables_by_hand() -> None:
    made = LinearTiming(1.0, 0.5, 0.25, 1e-3).tables(4, 3)
    assert (made.decode_ps / PS).tolist() == [1, 1.25, 1.5, 1.75]
    assert (made.mixed_ps / PS).tolist() == [1, 1.5, 2, 2.5, 3]
    mixed = Batch(prefill_tokens=2, prefill_seqs=1, decode_seqs=1, context_tokens=10)
    assert made.iteration_ps(mixed) / PS == pytest.approx(1 + 2 * 0.5 + 0.25 + 10e-3)
    assert LinearTiming().num_gpu_blocks is None and LinearTiming().iteration_time(Batch()) == 1e-12


# Profiles


def profile(**changed: Any) -> ProfileTiming:
    terms = dict.fromkeys(MEASURED, 0.0) | {
        "launch_graph": 2e-3, "launch_eager": 9e-3, "launch_decode": 1e-3,
        "launch_decode_seq": 1e-5,
        "prepare": 5e-4, "schedule": 1e-4, "schedule_seq": 1e-6, "update": 2e-4, "update_seq": 2e-6,
        "mixed_context": 3e-8, "tail": 1e-4,
    }  # fmt: skip
    made: dict[str, Any] = dict(
        name="p", num_gpu_blocks=9, decode=[(1, 4e-3), (8, 5e-3)], decode_context=[(1, 2e-8)],
        mixed=[(1, 5e-3), (64, 6e-3), (512, 2e-2)], terms=terms, about={},
    )  # fmt: skip
    return ProfileTiming(**(made | changed))


def test_sizes_are_padded_to_graphs_and_tiles() -> None:
    assert capture_sizes(4, 2048).tolist() == [1, 2, 4, 8]
    assert capture_sizes(512, 20).tolist() == [1, 2, 4, 8, 16, 20]
    assert capture_sizes(512, 2048)[-3:].tolist() == [480, 496, 512]
    assert capture_sizes(128, 256)[-2:].tolist() == [248, 256]
    graphs = np.array([1, 4, 8])
    assert padded(np.array([1, 2, 4, 5, 8, 9, 128, 129]), graphs).tolist() == [
        1, 4, 4, 8, 8, 128, 128, 256,
    ]  # fmt: skip


def test_lines_go_on_with_the_slope_of_their_upper_half() -> None:
    knots = [(0, 1.0), (10, 2.0), (20, 4.0), (30, 5.0)]
    at = np.array([0, 5, 30, 40])
    # from 20 to 30 it rises by 0.1 a unit
    assert _line(knots, at).tolist() == [1, 1.5, 5, 6]
    assert _line(knots, at, beyond=False).tolist() == [1, 1.5, 5, 5]
    assert _line([(0, 1.0), (1, 0.5)], np.array([9])).tolist() == [0.5]  # never falls on
    assert _line([(3, 1.0)], np.array([0, 9])).tolist() == [1, 1]


def test_a_profile_s_clocks_by_hand() -> None:
    made = profile().pipeline(1024, 16)
    graphs = capture_sizes(16, 1024)  # up to 32
    assert graphs[-1] == 32
    assert made.decode_ps[5] == round(5e-3 * PS)  # padded to 8
    assert made.decode_ps[9] / PS == pytest.approx(5e-3 + 8 * 1e-3 / 7)  # padded to 16
    assert made.decode_context_ps.tolist() == [20_000] * 17
    assert made.mixed_ps[3] / PS == pytest.approx(5e-3 + 1e-3 * 3 / 63)
    assert made.mixed_ps[33] / PS == pytest.approx(6e-3 + 1.4e-2 * 64 / 448)  # a tile of 128
    assert made.mixed_launch_ps[32] == 2 * 10**9 and made.mixed_launch_ps[33] == 9 * 10**9
    assert made.terms["launch_decode"] == 10**9 and "launch_graph" not in made.terms
    slow = profile().with_factors(cpu=2.0)
    assert slow.name == "p:cpu=2" and (slow.cpu, slow.gpu) == (2, 1)
    assert (profile().cpu, profile().gpu) == (1, 1)
    twice = slow.pipeline(1024, 16)
    for name in ("launch_decode", "launch_decode_seq", "prepare"):
        assert twice.terms[name] == 2 * made.terms[name]
    for name in ("schedule", "update", "tail", "mixed_context"):
        assert twice.terms[name] == made.terms[name]
    assert twice.mixed_launch_ps[0] == 4 * 10**9 and (twice.mixed_ps == made.mixed_ps).all()
    gpu = profile().with_factors(gpu=0.5)
    assert gpu.name == "p:gpu=0.5"
    half = gpu.pipeline(1024, 16)
    for name in ("decode_ps", "decode_context_ps", "mixed_ps"):
        assert getattr(half, name) == pytest.approx(getattr(made, name) / 2, abs=1)
    assert (half.mixed_launch_ps == made.mixed_launch_ps).all()
    assert half.terms["mixed_context"] == made.terms["mixed_context"] / 2
    for name in ("schedule", "update", "tail", "launch_decode", "prepare"):
        assert half.terms[name] == made.terms[name]
    both = slow.with_factors(gpu=0.5, cpu=3.0)
    assert (both.name, both.cpu, both.gpu) == ("p:gpu=0.5,cpu=3", 3, 0.5)
    assert both.with_factors().name == "p"
    for factor in (0, 100, -1, math.nan):
        with pytest.raises(InputError, match="cpu must be above 0 and below 100"):
            profile().with_factors(cpu=factor)
        with pytest.raises(InputError, match="gpu must be above 0 and below 100"):
            profile().with_factors(gpu=factor)


def test_a_profile_on_one_clock_by_hand() -> None:
    made = profile(decode_context=[(1, 1e-8), (2, 2e-8), (16, 6e-8)])
    tables, clocks = made.tables(1024, 16), made.pipeline(1024, 16)
    slope = int(np.median(clocks.decode_context_ps))
    assert tables.terms["context"] == slope
    for seqs in (1, 2, 9):  # at 1,000 tokens a sequence both clocks say the same
        batch = Batch(decode_seqs=seqs, context_tokens=1000 * seqs)
        assert tables.iteration_ps(batch) == max(
            clocks.gpu_ps(batch), (10**9 + 3 * 10**8) + seqs * (10**7 + 3 * 10**6)
        )
    assert tables.terms["floor"] == 1_300_000_000 and tables.terms["floor_seq"] == 13_000_000
    # beside prefill the launch and the CPU's work, where they take longer
    assert tables.mixed_ps[33] == max(clocks.mixed_ps[33], 9 * 10**9 + 3 * 10**8)
    assert tables.mixed_ps[1024] == clocks.mixed_ps[1024] > 9 * 10**9
    assert set(tables.terms) == {
        "mixed_context", "chunk_context", "decode_seq", "prefill_seq", "context", "floor",
        "floor_seq",
    }  # fmt: skip
    assert made.iteration_time(Batch(decode_seqs=2, context_tokens=2000)) == pytest.approx(
        made.tables(16_384, 1024).iteration_ps(Batch(decode_seqs=2, context_tokens=2000)) / PS
    )


def test_a_profile_s_file_is_checked_at_its_ends(tmp_path: Path) -> None:
    def read(change: Callable[[dict[str, Any]], None], version: str | None = None) -> ProfileTiming:
        terms = dict.fromkeys(MEASURED, 1e-3)
        data: dict[str, Any] = {
            "format": "lengthwise-timing-profile", "format_version": 1, "name": "n",
            "num_gpu_blocks": 5, "engine": {"name": "vllm", "version": "1"}, "gpu": "x",
            "fit": {"decode": [[1, 1e-3]], "decode_context": [[0, 0]], "mixed": [[1, 1e-3]],
                    "terms": terms},
        }  # fmt: skip
        change(data)
        (tmp_path / "p.json").write_text(json.dumps(data))
        return read_profile(tmp_path / "p.json", version)

    made = read(lambda d: None, "1")
    assert made.name == "n" and made.about["gpu"] == "x" and "fit" not in made.about
    assert read(lambda d: d.update(num_gpu_blocks=None)).num_gpu_blocks is None
    assert read(lambda d: d.update(num_gpu_blocks=2**23)).num_gpu_blocks == 2**23
    assert read(lambda d: d["fit"]["terms"].update(tail=1000)).terms["tail"] == 1000
    assert read(lambda d: d["fit"]["terms"].update(floor=2)).terms["floor"] == 2
    assert read(lambda d: d["fit"].update(mixed=[[0, -1000], [1, 1000]])).mixed[1] == (1, 1000)
    for change, said in (
        (lambda d: d.update(num_gpu_blocks=0), "num_gpu_blocks is 0; it must be"),
        (lambda d: d.update(num_gpu_blocks=2**23 + 1), "num_gpu_blocks is 8388609"),
        (lambda d: d.update(num_gpu_blocks=True), "num_gpu_blocks is True"),
        (lambda d: d["fit"]["terms"].update(tail=1000.1), "tail is 1000.1 s; 1000 are the most"),
        (lambda d: d["fit"]["terms"].pop("tail"), "is damaged: KeyError('tail')"),
        (lambda d: d["fit"].update(mixed=[]), "a table's sizes must rise"),
        (lambda d: d["fit"].update(mixed=[[1, 0], [1, 0]]), "a table's sizes must rise"),
        (lambda d: d["fit"].update(mixed=[[1, 0], [2, 0], [2, 0]]), "a table's sizes must rise"),
        (lambda d: d["fit"].update(mixed=[[-1, 0]]), "holds sizes from 0 and up to 1000 s"),
        (lambda d: d["fit"].update(mixed=[[1, 1001]]), "holds sizes from 0"),
        (lambda d: d.update(format_version=2), "has format version 2"),
        (lambda d: d.update(format="x"), "is no timing profile"),
    ):
        assert said in line_of(lambda change=change: read(change))
    assert "measured on vllm 1, not on 2; profile that version" in line_of(
        lambda: read(lambda d: None, "2")
    )


def test_names_of_timings() -> None:
    assert timing_names()[-2:] == ["roofline:GPU/MODEL", "live:MODEL"]
    assert timing("h200/llama-3.1-8b@0.26.0").name == "h200/llama-3.1-8b"
    assert gpu_of("h200/llama-3.1-8b") == "h200" == gpu_of("roofline:2xh200/x")
    assert gpu_of("roofline:4090/x") == "4090" and gpu_of("live:x") is None
    assert gpu_of("h300/x") is None and gpu_of("roofline:2h200/x") is None
    assert gpu_of("roofline:boxh200/x") is None  # an x, and no number of GPUs
    with pytest.raises(InputError, match=r"no profile of 'h200/x' \(measured: h100/llama"):
        timing("h200/x")
    with pytest.raises(UnknownNameError, match="unknown timing 'h200'"):
        timing("h200")


def test_a_profile_s_file_names_its_gpu(tmp_path: Path) -> None:
    data = json.loads(Path(str(build.__file__)).parent.joinpath(
        "data/h200_llama-3.1-8b.json").read_text())  # fmt: skip
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    assert gpu_of(str(path)) == "h200" == gpu_of(f"{path}:cpu=2")
    assert timing(f"{path}:cpu=2").name == "h200/llama-3.1-8b:cpu=2"


def test_a_profile_is_written_with_five_digits(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    build.write_profile({"a": 1.23456789, "b": [{"c": (2.0, 7)}], "d": 123456789}, path)
    assert json.loads(path.read_text()) == {"a": 1.2346, "b": [{"c": [2.0, 7]}], "d": 123456789}
    assert list(tmp_path.iterdir()) == [path]


# The fit


def recorded(rows: list[dict[str, float]]) -> pd.DataFrame:
    """Iterations; what is not said is 0."""
    frame = pd.DataFrame([dict.fromkeys(COLUMNS, 0) | row for row in rows])
    return frame[list(COLUMNS)].astype(np.int64)


def steady(n: int, **row: int) -> list[dict[str, float]]:
    """Iterations of 10 ms, each scheduled 4 ms before the one before it is seen."""
    ms = 10**6
    return [
        {"schedule_ns": 10 * k * ms, "scheduled_ns": (10 * k + 1) * ms,
         "done_ns": (10 * k + 15) * ms, "updated_ns": (10 * k + 17) * ms,
         "decode_seqs": 2, "running": 2, **row}
        for k in range(n)
    ]  # fmt: skip


def test_iterations_are_read_and_told_apart() -> None:
    rows = steady(12)
    rows[3]["preempted"] = 1
    rows[7]["new"] = 11
    rows[10]["done_ns"] = -1  # never seen: not there
    rows.append(rows[-1] | {"done_ns": 0})
    found = fitting.read_iterations(recorded(rows), [1, 2, 4])
    assert len(found.frame) == 11 and found.took[1:9] == pytest.approx(0.01)
    assert found.took[0] == 0 and found.scheduled[0] == 0 and found.seen[0] == pytest.approx(0.014)
    assert found.overlaps.tolist() == [False] + [True] * 9 + [False]
    # not beside who comes or is preempted, nor the first, nor before and at a graph's first run
    assert np.flatnonzero(~found.usable).tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert found.tokens.tolist() == [2] * 11 and found.sequences.tolist() == [2.0] * 11
    assert found.decode.all() and not found.eager.any() and found.padded.tolist() == [2] * 11
    mixed = steady(6)
    for k, tokens in ((2, 1), (4, 3)):
        mixed[k] |= {"prefill_tokens": tokens, "prefill_seqs": 1}
    found = fitting.read_iterations(recorded(mixed), [1, 2, 4])
    assert found.eager.tolist() == [False] * 4 + [True, False]
    assert found.padded.tolist() == [2, 2, 4, 2, 128, 2]
    # the first run of the graph of 4 is k = 2: neither it nor the one before
    assert np.flatnonzero(~found.usable).tolist() == [0, 1, 2]
    kinds = regimes.regimes(found)
    assert np.flatnonzero(kinds["mixed, in CUDA graphs"]).tolist() == [2]
    assert np.flatnonzero(kinds["mixed, without"]).tolist() == [4]
    assert np.flatnonzero(kinds["decode"]).tolist() == [0, 1, 3, 5] and not kinds["prefill"].any()


def test_a_fifth_of_the_shapes_is_held_out() -> None:
    rows = [row | {"label": k % 500} for k, row in enumerate(steady(2000))]
    found = fitting.read_iterations(recorded(rows), [1, 2, 4])
    assert 0.15 < found.held_out.mean() < 0.25
    assert (found.held_out[:500] == found.held_out[500:1000]).all()  # whole shapes
    other = fitting.read_iterations(recorded(rows), [1, 2, 4], seed=1)
    assert (other.held_out != found.held_out).any()


def test_hats_and_second_differences_by_hand() -> None:
    knots = np.array([0.0, 10.0, 30.0])
    made = fitting._hat(np.array([-5.0, 0.0, 5.0, 10.0, 25.0, 30.0, 99.0]), knots)
    assert made.tolist() == [
        [1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.25, 0.75], [0, 0, 1], [0, 0, 1],
    ]  # fmt: skip
    rows = fitting._second_differences(np.array([0.0, 1.0, 3.0, 4.0]), 6)
    assert rows.shape == (2, 6)
    assert rows @ np.array([5.0, 7.0, 11.0, 13.0, 9.0, 9.0]) == pytest.approx([0, 0])  # a line
    assert (rows @ np.array([0.0, 1.0, 9.0, 16.0, 0, 0]) > 0).all()  # bends upwards
    assert rows[0].tolist() == pytest.approx([2 / 3, -1, 1 / 3, 0, 0, 0])


def test_the_line_of_least_absolute_error_is_that_of_the_linear_program() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 100, 60)
    y = 3e-3 + 2e-5 * x + rng.exponential(1e-4, 60) * (rng.random(60) < 0.3)
    n = len(x)
    cost = np.concatenate([[0, 0], np.ones(2 * n)])
    equal = np.hstack([np.ones((n, 1)), x[:, None], np.eye(n), -np.eye(n)])
    bounds = [(None, None)] * 2 + [(0, None)] * (2 * n)
    best = linprog(cost, A_eq=equal, b_eq=y, bounds=bounds)
    found = fitting._line(x, y)
    assert np.abs(y - found[0] - found[1] * x).sum() <= best.fun * 1.02
    assert found == pytest.approx((best.x[0], best.x[1]), rel=0.02)
    assert fitting._line(x, -y) == (0.0, 0.0)
    falling = fitting._line(x, 1.0 - 1e-3 * x)
    assert falling[1] == 0 and falling[0] == pytest.approx(1.0, rel=1e-3)


def test_the_cpu_s_seconds_by_hand() -> None:
    rows = steady(3)
    rows[1] |= {"prefill_tokens": 1, "prefill_seqs": 1}
    rows[2] |= {"prefill_tokens": 9, "prefill_seqs": 3}
    found = fitting.read_iterations(recorded(rows), [1, 2, 4])
    cpu = np.array([1.0, 0.1, 2.0, 5.0, 0.01, 0.001, 0.5, 0.25, 9.0])
    prepare, launch = fitting.cpu_seconds(found, cpu, np.array([1.0, 2.0, 3.0]))
    assert launch == pytest.approx([1.2, 2 * (2 + 0.03 + 0.001), 3 * (5 + 0.05 + 0.003)])
    # not longer than the launch itself
    assert prepare == pytest.approx([1.0, 2 * 1.25, 3 * 1.75])
    small = np.array([0.1, 0.1, 0.2, 0.2, 0, 0, 0.5, 0.25, 9.0])
    assert fitting.cpu_seconds(found, small, np.ones(3))[0] == pytest.approx([0.3, 0.2, 0.2])


def test_windows_and_overheads_by_hand() -> None:
    found = fitting.read_iterations(recorded(steady(100)), [1, 2, 4])
    assert np.bincount(fitting.windows(found)).tolist() == [40, 40, 20]  # of 0.4 s each
    rows = [
        row | {"running": 1 + k % 5, "decode_seqs": 1 + k % 3,
               "scheduled_ns": row["schedule_ns"] + 2000 + 100 * (1 + k % 5),
               "updated_ns": row["done_ns"] + 5000 + 70 * (1 + k % 3)}
        for k, row in enumerate(steady(60))
    ]  # fmt: skip
    found = fitting.read_iterations(recorded(rows), [1, 2, 4])
    assert fitting.overheads(found) == {
        "schedule": pytest.approx(2e-6, rel=0.02), "schedule_seq": pytest.approx(1e-7, rel=0.1),
        "update": pytest.approx(5e-6, rel=0.02), "update_seq": pytest.approx(7e-8, rel=0.1),
    }  # fmt: skip


def test_the_front_end_by_hand() -> None:
    """There 3 ms and 1 us a token; back 1 ms and 2 us a client, after an update of 0.5 ms."""
    us = 1000
    rows: dict[str, dict[str, int]] = {}
    for k, prompt in enumerate((16, 256, 1024, 16, 256, 1024)):
        rows[f"alone{k}"] = {"level": 1, "prompt": prompt, "submit_ns": 0,
                             "engine_added_ns": (3000 + prompt) * us}  # fmt: skip
    for level in (16, 64, 128):
        for k in range(4):
            rows[f"level{level}n{k}"] = {"level": level, "prompt": 32, "submit_ns": 0,
                                         "engine_added_ns": 10**9}  # fmt: skip
    frame = pd.DataFrame.from_dict(rows, orient="index")
    for name in ("first", "last"):
        frame[f"engine_{name}_ns"] = 0
        frame[f"{name}_ns"] = (1500 + 3 * frame["level"]) * us
    found = fitting.frontend(frame, {"update": 5e-4, "update_seq": 1e-6})
    assert found == {
        "arrival": pytest.approx(3e-3, rel=0.01), "arrival_token": pytest.approx(1e-6, rel=0.02),
        "output": pytest.approx(1e-3, rel=1e-6), "output_seq": pytest.approx(2e-6, rel=1e-6),
    }  # fmt: skip
    faster = fitting.frontend(frame, {"update": 5e-3, "update_seq": 1e-3})
    assert (faster["output"], faster["output_seq"]) == (0.0, 0.0)


def piped(scheduled: list[float], seen: list[float], gpu: list[float], **given: Any) -> Any:
    n = len(scheduled)
    made = {"prepare": 0.0, "launch": 0.0, "tail": 0.0, "overlaps": True, "decode": True} | given
    arrays = {
        name: np.broadcast_to(np.asarray(made[name]), n).copy()
        for name in ("prepare", "launch", "overlaps", "decode")
    }
    function = fitting.pipeline.py_func  # as Python, without its compiler
    return [
        found.tolist()
        for found in function(
            np.array(scheduled), np.array(seen), np.array(gpu), arrays["prepare"],
            arrays["launch"], made["tail"], arrays["overlaps"], arrays["decode"],
        )
    ]  # fmt: skip


def test_the_pipeline_by_hand() -> None:
    """The GPU is the slower clock; then the CPU; then nothing was under way."""
    ours = piped([0.0, 1.0, 6.0], [10.0, 18.0, 29.0], [10.0, 9.0, 11.0], prepare=0.5, launch=1.0)
    predicted, starts, by_gpu, by_cpu = ours
    assert starts == [0.5, 10.0, 18.0]  # from what was seen, not from what was predicted
    assert predicted == [10.5, 19.0, 29.0]
    assert by_gpu == [False, True, True] and by_cpu == [False] * 3
    # the launch of the next is later by far: its moment is when the result is seen
    predicted, starts, by_gpu, by_cpu = piped([0.0, 5.0], [9.0, 12.0], [2.0, 2.0], launch=4.0)
    assert predicted == [9.0, 9.0] and by_cpu == [True, False] and starts == [0.0, 5.0]
    # not before the last kernel is launched, and a tail
    predicted, *_ = piped([0.0], [9.0], [2.0], launch=4.0, tail=1.5)
    assert predicted == [5.5]
    # what was not scheduled ahead begins anew
    _, starts, by_gpu, _ = piped(
        [0.0, 20.0, 21.0], [10.0, 30.0, 41.0], [10.0] * 3, overlaps=[False, False, True]
    )
    assert starts == [0.0, 20.0, 30.0] and by_gpu == [False, False, True]


def test_what_sizes_are_fitted_and_the_first_guess() -> None:
    sizes = [40, 100, 300, 700, 1000, 2600, 3000]
    rows = [row | {"prefill_tokens": tokens, "prefill_seqs": 1, "decode_seqs": 0}
            for row, tokens in zip(steady(7), sizes, strict=True)]  # fmt: skip
    found = fitting.read_iterations(recorded(rows), [1, 2, 4, 32, 48, 64])
    found.usable[:] = True
    knots = fitting._mixed_knots(found).tolist()
    assert knots == [1, 32, 64, *range(128, 2049, 128), 2560]
    found.usable[5:] = False
    assert fitting._mixed_knots(found).tolist() == [1, 32, 64, *range(128, 1000, 128)]
    assert fitting._token_seconds(found) == pytest.approx(0.01 / 1000)
    columns = fitting.mixed_columns(found, np.array([1.0, 128.0]))
    assert columns.shape == (7, 6) and columns[0].tolist() == pytest.approx(
        [1 - (48 - 1) / 127, 47 / 127, 0, 0, 0, 1]
    )
    decode = fitting.read_iterations(recorded(steady(4, context_tokens=50)), [1, 2, 4])
    assert fitting.decode_columns(decode, np.array([1.0, 3.0]), np.array([1.0, 2.0])).tolist() == (
        [[0.5, 0.5, 0, 50]] * 4
    )
    assert not fitting.mixed_columns(decode, np.array([1.0, 2.0])).any()


def test_a_cpu_that_is_never_slower_keeps_what_was_assumed() -> None:
    found = fitting.read_iterations(recorded(steady(100)), [1, 2, 4])
    window, cpu = fitting.windows(found), np.array(fitting.CPU_START)
    few = np.arange(19)
    kept, speeds = fitting._fit_cpu(found, few, np.full(19, 1e-3), cpu, window, 3)
    assert kept is cpu and speeds.tolist() == [1, 1, 1]


def test_the_cpu_s_speed_is_found_in_each_window() -> None:
    """Decoding's launches take 3 ms at best, and in the second window 1.5 times as long."""
    found = fitting.read_iterations(recorded(steady(120)), [1, 2, 4])
    window, cpu = fitting.windows(found), np.array(fitting.CPU_START)
    took = 3e-3 * np.where(window == 1, 1.5, 1.0)
    kept, speeds = fitting._fit_cpu(found, np.arange(120), took, cpu, window, 4)
    assert speeds == pytest.approx([1.0, 1.5, 1.0, 1.0], rel=0.01)  # the fourth has none
    assert kept[0] + 2 * kept[1] == pytest.approx(3e-3, rel=0.05)
    assert kept[2:].tolist() == pytest.approx(cpu[2:].tolist())


def test_a_profile_needs_five_hundred_iterations() -> None:
    about = {"cudagraph_capture_sizes": [1, 2, 4]}
    frame = recorded(steady(400))
    with pytest.raises(InputError, match=r"39\d usable iterations are too few for a profile; 500"):
        build.build_profile("p", frame, frame, about)


def test_the_cpu_s_speed_is_of_windows_that_can_tell() -> None:
    rows = steady(120)
    for k in (0, 1, 2, 50, 51, 90, 91, 92, 93):  # windows of 40: three, two and four of them
        rows[k] |= {"prefill_tokens": 5, "prefill_seqs": 1}
    found = fitting.read_iterations(recorded(rows), [1, 2, 4])
    fit = fitting.Fit([], [], [], {}, np.array([1.0, 9.0, 2.0]))
    assert build.cpu_speed(found, fit) == {
        "mean": 1.5, "p10": pytest.approx(1.1), "p90": pytest.approx(1.9),
    }  # fmt: skip


# The sweep's plan


def test_a_plan_by_its_parts() -> None:
    plan = vllm_plan.sweep_plan(800_000, 2048, 256, 131_072)
    again = vllm_plan.sweep_plan(800_000, 2048, 256, 131_072)
    other = vllm_plan.sweep_plan(800_000, 2048, 256, 131_072, seed=1)
    assert plan == again != other
    assert [len(group["requests"]) for group in plan if "requests" in group] == [150, 250]
    assert "requests" in plan[0] and "requests" in plan[-1]
    # a burst, prefill, then two of decoding for each context and one of both for the shorter four
    assert len(plan) == 2 + 5 * 2 + 4 + 1
    prompts, outputs = np.array(plan[-1]["requests"]).T
    assert prompts.min() >= 16 and prompts.max() <= 4000 and outputs.min() >= 4
    assert outputs.max() <= 400
    assert np.log(prompts).mean() == pytest.approx(np.log([16, 4000]).mean(), abs=0.4)
    short = vllm_plan.sweep_plan(800_000, 2048, 256, 4096, thoroughness=0.5)
    assert max(p for p, _ in short[-1]["requests"]) <= 1024
    assert [len(group["requests"]) for group in short if "requests" in group] == [75, 125]


def test_prefill_of_every_size_several_and_late() -> None:
    group = vllm_plan._prefill(np.random.default_rng(0), 4096, 131_072, 1.0)
    assert group["context"] == []
    ones = [step[2][0][0] for step in group["steps"] if step[1] == 3 and step[2][0][1] == 0]
    assert ones == [
        2, 4, 8, 16, 24, 32, 48, *range(64, 513, 32), *range(576, 2049, 128), 3072, 4096,
    ]  # fmt: skip
    late = [tuple(step[2][0]) for step in group["steps"] if step[1] == 3 and step[2][0][1] > 0]
    assert late == [(t, b) for b in (2048, 8192, 16_384, 30_000) for t in (128, 512, 2048)]
    several = [step for step in group["steps"] if step[1] == 2]
    assert len(several) == 70 and all(n == 0 for n, *_ in group["steps"])
    totals = [sum(tokens for tokens, _ in step[2]) for step in several]
    assert 16 <= min(totals) and max(totals[:60]) <= 2048
    assert 2048 <= min(totals[60:]) < 3000 < max(totals[60:]) <= 4096
    usual = vllm_plan._prefill(np.random.default_rng(0), 2048, 131_072, 1.0)["steps"]
    assert sum(step[1] == 2 for step in usual) == 60
    little = vllm_plan._prefill(np.random.default_rng(0), 100, 2176, 0.5)["steps"]
    assert max(step[2][0][0] for step in little if step[1] == 3) == 96
    assert sum(step[1] == 2 for step in little) == 30
    edge = vllm_plan._prefill(np.random.default_rng(0), 128, 2048 + 129, 0.0)["steps"]
    assert [step[2] for step in edge if step[2][0][1]] == [[[128, 2048]]]
    assert not [s for s in vllm_plan._prefill(np.random.default_rng(0), 128, 2176, 0.0)["steps"]
                if s[2][0][1]]  # fmt: skip


def test_decoding_shrinks_from_what_fits() -> None:
    rng = np.random.default_rng(0)
    even, uneven = vllm_plan._decode(rng, 1024, 60_000, 256, 131_072, 5)
    fits = int(60_000 * 0.9 // 1624)
    assert even["context"] == [1024] * fits and fits == 33
    sizes = [step[0] for step in even["steps"]]
    assert sizes == [32, 28, 24, 20, 16, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1]
    assert all(step[1:] == [5, []] for step in even["steps"])
    assert [step[0] for step in uneven["steps"]] == sizes[::3]
    assert min(uneven["context"]) >= 16 and len(set(uneven["context"])) > 20
    assert sum(uneven["context"]) + 600 * fits <= 60_000 * 0.9 * 1.02 or sum(uneven["context"]) <= (
        60_000 * 0.9
    )
    assert vllm_plan._contexts(rng, 24_000, False, 10**9, 8, 2048) == [1024] * 8
    wide = vllm_plan._contexts(rng, 1000, True, 10**9, 4000, 131_072)
    assert len(wide) == 4000 and np.mean(wide) == pytest.approx(1000, rel=0.06)
    assert np.std(np.log(wide)) == pytest.approx(0.8, rel=0.1)
    assert max(vllm_plan._contexts(rng, 8000, True, 10**9, 4000, 9000)) == 9000 - 1024


def test_batches_beyond_the_graphs_are_measured_where_seats_allow() -> None:
    assert vllm_plan._decode_large(10**6, 512, 8) == []
    short, longer = vllm_plan._decode_large(400_000, 1024, 8)
    assert short["context"] == [64] * 1024
    assert [step[0] for step in short["steps"]] == [1024, 896, 768, 640, 576, 512]
    assert all(step[1:] == [8, []] for step in short["steps"])
    fits = int(400_000 * 0.9 // 356)
    assert longer["context"] == [256] * fits and longer["steps"][0][0] == 896
    served = vllm_plan.sweep_plan(800_000, 8192, 1024, 131_072)
    assert len(served) == len(vllm_plan.sweep_plan(800_000, 2048, 256, 131_072)) + 3
    chunks = [sum(t for t, _ in c) + n for g in served for n, _, c in g.get("steps", []) if c]
    assert max(chunks) == 8192 and sum(total > 4096 for total in chunks) > 20


def test_both_at_once_leave_seats_for_chunks() -> None:
    (group,) = vllm_plan._mixed(np.random.default_rng(0), 256, 10**9, 4096, 256, 131_072, 7)
    assert len(group["context"]) == 256 - 32
    sizes = list(dict.fromkeys(step[0] for step in group["steps"]))
    assert sizes == [224, 192, 160, 128, 96, 64, 48, 32, 16, 8, 4, 1]
    for n in sizes:
        mine = [step for step in group["steps"] if step[0] == n]
        assert [step[1] for step in mine] == [2] * 7 + [3, 2]
        assert mine[-2][2] == [[2048 - n, 0]] and mine[-1][2] == [[4096 - n, 0]]
        totals = [n + sum(tokens for tokens, _ in step[2]) for step in mine[:7]]
        assert n + 15 <= min(totals) and max(totals) <= 2048
    (large,) = vllm_plan._mixed(np.random.default_rng(0), 256, 10**9, 8192, 1024, 131_072, 16)
    beyond = [step for step in large["steps"] if step[1] == 2 and step[2] != [[4096 - step[0], 0]]
              and step[0] + sum(tokens for tokens, _ in step[2]) > 2048]  # fmt: skip
    assert [step[0] for step in beyond] == [768, 768, 256, 256, 160, 160, 64, 64, 16, 16, 1, 1]
    # three quarters of the cache, in whole tokens: 951 are one too few for a sequence of 856
    for cache, sequences in ((1269, 0), (1270, 1), (2537, 1), (2538, 2)):
        (tight,) = vllm_plan._mixed(np.random.default_rng(0), 256, cache, 2048, 256, 131_072, 1)
        assert len(tight["context"]) == sequences
    (small,) = vllm_plan._mixed(np.random.default_rng(0), 256, 10**9, 1024, 256, 131_072, 1)
    assert [step[1] for step in small["steps"] if step[0] == 8] == [2, 3]
    assert small["steps"][-1][2] == [[1023, 0]]


def test_many_short_sequences_decode_beside_prefill() -> None:
    rng = np.random.default_rng(0)
    (group,) = vllm_plan._mixed_large(rng, 450_000, 8192, 1024)
    assert group["context"] == [64] * 768
    assert list(dict.fromkeys(n for n, *_ in group["steps"])) == [768, 512, 384]
    totals = np.array([n + chunks[0][0] for n, _, chunks in group["steps"]])
    assert (totals >= 2048).sum() >= 3 and totals.max() <= 8192 and totals.min() < 2048
    # seats for the chunks, room in the cache and in an iteration
    assert vllm_plan._mixed_large(rng, 450_000, 8192, 256) == []
    (few,) = vllm_plan._mixed_large(rng, 70_000, 2048, 1024)
    assert few["context"] == [64] * 512
    assert vllm_plan._mixed_large(rng, 450_000, 512, 512) == []


def test_few_seats_have_a_plan_too() -> None:
    for seats, beside in ((1, 1), (8, 4), (40, 20), (104, 72)):
        (group,) = vllm_plan._mixed(np.random.default_rng(0), 256, 10**9, 256, seats, 2048, 2)
        assert len(group["context"]) == beside
        plan = vllm_plan.sweep_plan(500_000, 256, seats, 2048, thoroughness=0.1)
        assert max(n for g in plan for n, *_ in g.get("steps", [])) == seats


def test_chunks_sum_to_their_total_and_every_third_is_late() -> None:
    rng = np.random.default_rng(0)
    made = [vllm_plan._chunks(rng, 600, 131_072) for _ in range(2000)]
    assert all(sum(tokens for tokens, _ in chunks) == 600 for chunks in made)
    counts = np.bincount([len(chunks) for chunks in made], minlength=8) / 2000
    assert counts[[1, 2, 3, 4, 6]] == pytest.approx([3 / 7, 1 / 7, 1 / 7, 1 / 7, 1 / 7], abs=0.035)
    assert counts[5] == 0
    befores = np.array([before for chunks in made for _, before in chunks])
    assert (befores > 0).mean() == pytest.approx(1 / 3, abs=0.025)
    late = befores[befores > 0]
    assert late.min() >= 64 and late.max() <= 8192
    assert np.log(late).mean() == pytest.approx(np.log([64, 8192]).mean(), abs=0.1)
    assert all(len(vllm_plan._chunks(rng, 15, 131_072)) == 1 for _ in range(50))
    assert {len(vllm_plan._chunks(rng, 16, 131_072)) for _ in range(80)} == {1, 2}
    assert all(b <= 1000 - 16 - t for _ in range(200) for t, b in vllm_plan._chunks(rng, 64, 1000))


def test_a_known_model_s_folder_is_made_and_a_path_is_kept(tmp_path: Path) -> None:
    with model_folder("llama-3.1-8b") as folder:
        config = json.loads((folder / "config.json").read_text())
    assert not folder.exists() and folder.name == "llama-3.1-8b"
    assert config["architectures"] == ["LlamaForCausalLM"] and config["hidden_size"] == 4096
    assert (config["bos_token_id"], config["eos_token_id"], config["rms_norm_eps"]) == (1, 2, 1e-5)
    assert config["attention_bias"] is False and config["mlp_bias"] is False
    with model_folder(str(tmp_path)) as kept:
        assert kept == tmp_path
    with model_folder(str(tmp_path / "config.json")) as kept:
        assert kept == tmp_path


def test_profiling_says_what_it_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        measure, "_gpu", lambda shape, count, weight_bytes: (f"NVIDIA H{100 * count}", 79.1)
    )
    monkeypatch.setattr(measure_torch, "profile_torch", lambda *given: asked.append(given))
    monkeypatch.setattr(
        measure, "_profile_vllm", lambda *given, **more: asked.append((given, more))
    )
    out = tmp_path / "p.json"
    assert measure.profile("torch", "llama-3.1-8b", out, tensor_parallel=2) == out
    name, model, path, facts, seqs, tokens = asked.pop()
    assert (name, model, path, seqs, tokens) == (
        "2xh200/llama-3.1-8b",
        "llama-3.1-8b",
        out,
        512,
        2048,
    )
    assert facts["model"] == "llama-3.1-8b" and facts["command"] == (
        "lengthwise profile --engine torch --model llama-3.1-8b --out p.json --seconds 150.0 "
        "--thoroughness 1.0 --tensor-parallel 2 --max-num-seqs 512 --max-num-batched-tokens 2048"
    )
    measure.profile(out=out, name="mine", seconds=3.0, thoroughness=0.5, max_num_seqs=7)
    given, more = asked.pop()
    assert given[0] == "mine" and given[4:6] == (3.0, 0.5) and not more
    assert given[6] == {
        "tensor_parallel_size": 1, "max_num_seqs": 7, "max_num_batched_tokens": 8192,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"cannot write .*: the folder .* does not exist"):
        measure.profile(out=tmp_path / "no" / "p.json")


def test_a_gpu_must_be_there_and_hold_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def gpus(count: int, gib: float, there: bool = True) -> None:
        cuda = SimpleNamespace(
            device_count=lambda: count, is_available=lambda: there,
            mem_get_info=lambda device: (0, gib * 2**30),
            get_device_name=lambda device: f"NVIDIA {device}",
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))

    shape = model_shape("llama-3.1-8b")
    gib = shape.parameters * 2 / 2**30
    gpus(2, gib / 0.92 * 1.001)
    found = ("NVIDIA 0", pytest.approx(gib / 0.92 * 1.001))
    assert measure._gpu(shape, 1) == found == measure._gpu(shape, 2)
    assert "needs 3 GPU(s), and torch sees 2 on" in line_of(lambda: measure._gpu(shape, 3))
    gpus(2, gib / 0.92 * 0.999)
    assert f"its weights take {gib:.1f} GiB a GPU" in line_of(lambda: measure._gpu(shape, 1))
    measure._gpu(shape, 2)
    measure._gpu(shape, 1, 1)  # in eight bits
    gpus(2, 999, there=False)
    assert "torch sees 0" in line_of(lambda: measure._gpu(shape, 1))


# Live timing


def test_sizes_are_those_of_a_grid() -> None:
    assert [measure_torch._rounded(size) for size in (0, 1.4, 2.6, 4)] == [0, 1, 3, 4]
    steps = [2 ** (k / 4) for k in range(60)]
    for size in (5, 9.7, 100, 1234):
        nearest = min(steps, key=lambda step: abs(math.log(step / size)))
        assert measure_torch._rounded(size) == round(nearest)
    point = measure_torch.grid_point(
        Batch(prefill_tokens=128, prefill_seqs=2, decode_seqs=3, context_tokens=192,
              chunk_context=128 * (64 + 32))
    )  # fmt: skip
    # two chunks of 64 tokens after 64 each, three sequences of 64 tokens
    assert point == measure_torch.Point(64, 2, 64, 3, 64)
    near = Batch(prefill_tokens=64, prefill_seqs=1, chunk_context=64 * (27 + 32))
    assert measure_torch.grid_point(near).chunk_before == 0  # less than 32 is none
    far = Batch(prefill_tokens=64, prefill_seqs=1, chunk_context=64 * (32 + 32))
    assert measure_torch.grid_point(far).chunk_before == 32
    assert measure_torch.grid_point(Batch(decode_seqs=2, context_tokens=8)) == (
        measure_torch.Point(decode_seqs=2, context=4)
    )
    assert measure_torch.grid_point(Batch()) == measure_torch.Point()


def test_what_was_measured_is_kept() -> None:
    asked: list[Any] = []

    def seconds(point: Any) -> float:
        asked.append(point)
        return 0.5

    live = measure_torch.LiveTiming(SimpleNamespace(seconds=seconds), "live", None)  # type: ignore[arg-type]
    for context in (800, 808, 2000):
        assert live.iteration_time(Batch(decode_seqs=8, context_tokens=context)) == 0.5
    assert len(asked) == 2 == len(live.measured)


def test_a_batch_runs_as_its_parts() -> None:
    made = object.__new__(measure_torch.Runner)
    parts: list[Any] = []
    ran: list[Any] = []
    times = iter([9.0, 3.0, 5.0])
    made.torch = SimpleNamespace(inference_mode=lambda: open("/dev/null"))
    made._part = lambda *given: given  # type: ignore[method-assign, assignment]
    made._run = lambda given: parts.append(given)  # type: ignore[method-assign]
    made._timed = lambda given: ran.append(given) or next(times)  # type: ignore[method-assign, func-returns-value]
    assert made.seconds(measure_torch.Point(64, 2, 32, 3, 100)) == 5.0  # the median of three
    assert parts == [[(2, 64, 32), (3, 1, 99)]] and ran == parts * 3  # warmed up once
    times = iter([1.0] * 6)
    made.seconds(measure_torch.Point(decode_seqs=3))
    made.seconds(measure_torch.Point(64, 1))
    assert parts[1:] == [[(3, 1, 0)], [(1, 64, 0)]]


def test_a_grid_of_batches_by_hand(tmp_path: Path) -> None:
    made = measure_torch._design(8, 128, shape(tmp_path, max_position_embeddings=256))
    point = measure_torch.Point
    assert made == [
        point(16, 1), point(32, 1), point(64, 1), point(128, 1), point(32, 1, 224),
        point(64, 1, 192),
        *(point(decode_seqs=seqs, context=c) for seqs in (1, 2, 4, 8) for c in (16, 64)),
    ]  # fmt: skip
    long = measure_torch._design(1, 8192, shape(tmp_path, max_position_embeddings=None))
    assert max(one.chunk_tokens for one in long) == 2048  # prompts of up to 4,096
    assert {one.context for one in long if one.decode_seqs} == {256, 1024}
    assert [one for one in long if one.chunk_before] == []
    wide = measure_torch._design(4096, 16, shape(tmp_path))
    assert max(one.decode_seqs for one in wide) == 2048


def test_a_profile_of_measured_points_by_hand() -> None:
    """Decoding takes 1 ms and 2 us a sequence and 1 ns a token; prefill 3 us and 1 ns a pair."""
    rows = []
    for seqs in (1, 4):
        for context in (100, 300):
            seconds = 1e-3 + 2e-6 * seqs + 1e-9 * seqs * context
            rows.append(measure_torch.Point(decode_seqs=seqs, context=context).__dict__
                        | {"seconds": seconds})  # fmt: skip
    for tokens, before in ((16, 0), (32, 0), (32, 200)):
        seconds = 5e-3 + 3e-6 * tokens + 1e-9 * tokens * (before + tokens / 2)
        rows.append(measure_torch.Point(tokens, 1, before).__dict__ | {"seconds": seconds})
    made = measure_torch._direct_profile("n", pd.DataFrame(rows), {"gpu": "x"})
    fit = made["fit"]
    assert (made["name"], made["gpu"], made["format_version"]) == ("n", "x", 1)
    assert fit["decode"] == [(1, pytest.approx(1.002e-3)), (4, pytest.approx(1.008e-3))]
    assert fit["decode_context"] == [(1, pytest.approx(1e-9)), (4, pytest.approx(1e-9))]
    assert fit["mixed"] == [
        (16, pytest.approx(5e-3 + 48e-6)), (32, pytest.approx(5e-3 + 96e-6)),
    ]  # fmt: skip
    assert fit["terms"]["chunk_context"] == pytest.approx(1e-9)
    assert fit["terms"]["mixed_context"] == pytest.approx(1e-9)
    assert {name: s for name, s in fit["terms"].items() if s} .keys() == {
        "chunk_context", "mixed_context",
    }  # fmt: skip
    faster = [row | {"seconds": 1e-3 - 1e-9 * row["context"]} for row in rows[:4]] + rows[4:6]
    slopes = measure_torch._direct_profile("n", pd.DataFrame(faster), {})["fit"]
    assert slopes["decode_context"] == [(1, 0.0), (4, 0.0)]  # no context saves time
    assert slopes["terms"]["chunk_context"] == 0.0


def test_where_live_timing_runs() -> None:
    assert measure_torch._device("cpu") == "cpu"
    with pytest.raises(InputError, match="not @tpu"):
        measure_torch._device("tpu")
    cuda = SimpleNamespace(mem_get_info=lambda: (10**10, 0))
    held: Any = SimpleNamespace(device="cuda", torch=SimpleNamespace(cuda=cuda),
                                shape=SimpleNamespace(kv_bytes_per_token=1000))  # fmt: skip
    assert measure_torch._blocks(held) == int(0.9 * 10**10 / 16_000)
    held.device = "cpu"
    assert measure_torch._blocks(held) is None


@pytest.mark.parametrize(("budget", "each"), [(vllm_plan.USUAL, 2), (vllm_plan.USUAL + 1, 5)])
def test_only_budgets_beyond_the_usual_are_swept_in_more_steps(budget: int, each: int) -> None:
    [group] = vllm_plan._mixed_large(np.random.default_rng(0), 10**7, budget, 4096)
    counts = {n: sum(step[0] == n for step in group["steps"]) for n, *_ in group["steps"]}
    assert counts and set(counts.values()) == {each}
