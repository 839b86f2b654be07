"""Timing models: names, rooflines, profiles and their errors."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving.records import PS
from lengthwise.serving.timing import LinearTiming, timing, timing_names
from lengthwise.serving.timing.accuracy import error_of_roofline
from lengthwise.serving.timing.config import model_names, model_shape
from lengthwise.serving.timing.load import PROFILES, shipped
from lengthwise.serving.timing.profile import capture_sizes
from lengthwise.serving.timing.roofline import (
    ALL_REDUCE_LATENCY_S,
    estimates,
    gpus,
    products_s,
    roofline,
)

# parameters as the models' cards give them, in 1e9
CARDS = {
    "llama-3.2-1b": 1.24, "llama-3.2-3b": 3.21, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.6,
    "llama-2-7b": 6.74, "llama-2-13b": 13.02, "llama-2-70b": 68.98, "qwen2.5-7b": 7.62,
    "qwen2.5-14b": 14.77, "qwen2.5-32b": 32.76, "mistral-7b": 7.25, "opt-13b": 12.85,
}  # fmt: skip
# KV blocks that vLLM 0.26.0 allocated on H200s at its defaults
BLOCKS = {
    "h200/llama-3.2-3b": 71_152, "h200/llama-3.1-8b": 57_537, "h200/qwen2.5-14b": 33_905,
    "h200/qwen2.5-32b": 16_861, "2xh200/llama-3.1-70b": 25_289,
}  # fmt: skip


def data(name: str) -> Path:
    return Path(str(files("lengthwise.serving.timing").joinpath("data", name)))


@pytest.mark.parametrize("name", model_names())
def test_parameters_are_those_of_the_model_card(name: str) -> None:
    assert model_shape(name).parameters / 1e9 == pytest.approx(CARDS[name], rel=0.01)


@pytest.mark.parametrize(("spec", "blocks"), BLOCKS.items())
def test_kv_capacity_is_what_vllm_allocated(spec: str, blocks: int) -> None:
    assert roofline(spec).num_gpu_blocks == pytest.approx(blocks, rel=0.01)


def test_kv_bytes_of_llama_8b() -> None:
    # 2 (keys, values) x 8 heads x 128 numbers x 2 bytes x 32 layers
    assert model_shape("llama-3.1-8b").kv_bytes_per_token == 131_072


def test_roofline_is_bounded_by_bandwidth_then_by_arithmetic() -> None:
    model = roofline("h100/llama-3.1-8b")
    one = model.iteration_time(Batch(decode_seqs=1))
    eight = model.iteration_time(Batch(decode_seqs=8))
    assert eight == pytest.approx(one, rel=0.05)  # the weights are read once for all sequences
    assert one > 2 * model.model.parameters / 3.35e12 * 0.9  # no faster than the memory
    long = model.iteration_time(Batch(prefill_tokens=8192, prefill_seqs=1))
    half = model.iteration_time(Batch(prefill_tokens=4096, prefill_seqs=1))
    assert long / half == pytest.approx(2, rel=0.1)
    assert long > 2 * 8192 * 7e9 / 989e12  # no faster than the arithmetic


def test_two_gpus_exchange_twice_a_layer() -> None:
    """After attention and after the MLP (Shoeybi et al. 2019, figure 4): by hand, at one token."""
    one, two = roofline("h200/qwen2.5-32b"), roofline("2xh200/qwen2.5-32b")
    model, gpu = two.model, two.gpu
    layers, tokens = model.num_hidden_layers, 64
    graph = 64  # tokens of the captured batch
    found = [products_s(model, gpu, graph, estimates().gpu, count) for count in (1, 2)]
    twice = replace(gpu, bf16_flops=2 * gpu.bf16_flops, bandwidth_bytes_s=2 * gpu.bandwidth_bytes_s)
    half = products_s(model, twice, graph, estimates().gpu)
    # a ring all-reduce sends 2 (n - 1) / n of the 2-byte numbers over each link: here once
    message_s = tokens * model.hidden_size * 2 / gpu.link_bytes_s
    exchange_s = 2 * layers * (ALL_REDUCE_LATENCY_S + message_s)
    assert found[1] - half == pytest.approx(exchange_s, rel=1e-6)
    took = [each.pipeline(tokens, tokens).mixed_ps[tokens] * 1e-12 for each in (one, two)]
    assert took == pytest.approx(found, rel=1e-9)


def test_more_gpus_are_faster_and_hold_more() -> None:
    one, two = roofline("h200/qwen2.5-32b"), roofline("2xh200/qwen2.5-32b")
    batch = Batch(decode_seqs=32, context_tokens=32_000)
    assert one.iteration_time(batch) > 1.5 * two.iteration_time(batch)
    assert two.num_gpu_blocks > 2 * one.num_gpu_blocks


def test_a_config_file_is_a_model(tmp_path: Path) -> None:
    config = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    batch = Batch(decode_seqs=4, context_tokens=1000)
    from_file = timing(f"roofline:h200/{tmp_path / 'config.json'}")
    assert from_file.iteration_time(batch) == timing("roofline:h200/llama-3.1-8b").iteration_time(
        batch
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("roofline:h20/llama-3.1-8b", "unknown GPU 'h20'; did you mean 'h200'"),
        ("roofline:h200/llama-3.1-9b", "unknown model 'llama-3.1-9b'; did you mean 'llama-3.1-8b'"),
        ("roofline:h200", "roofline:GPU/MODEL"),
        ("roofline:3xh200/llama-3.1-8b", "do not divide"),
        ("roofline:4090/qwen2.5-14b", "does not fit: its weights take 27.5 GiB"),
        ("h200/llama-3.1-8b@0.27.0", "was measured on vllm 0.26.0, not on 0.27.0"),
        ("a100/llama-3.1-8b", "roofline:a100/llama-3.1-8b is an estimate"),
        ("h200/lama-3.1-8b", "no profile"),
        ("nothing", "unknown timing 'nothing'"),
        ("nowhere.json", "profile 'nowhere.json': No such file"),
        ("live:llama-3.1-8b@tpu", "not @tpu"),
        ("h200/llama-3.1-8b:tpu=2", "takes the options gpu=FACTOR,cpu=FACTOR, not 'tpu=2'"),
        ("h200/llama-3.1-8b:cpu=fast", "takes the options gpu=FACTOR,cpu=FACTOR"),
        ("h200/llama-3.1-8b:gpu=1,cpu", "takes the options gpu=FACTOR,cpu=FACTOR"),
        ("h200/llama-3.1-8b:gpu=inf", "gpu must be above 0 and below 100, not inf"),
        ("h200/llama-3.1-8b:cpu=0", "cpu must be above 0"),
    ],
)
def test_errors_are_one_clear_line(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        timing(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_say_so() -> None:
    with pytest.raises(UnknownNameError):
        timing("roofline:h201/llama-3.1-8b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "is no timing profile"),
        ({"format_version": 99}, "format version 99; this lengthwise reads version 1"),
        ({"fit": {}}, "is damaged"),
        ({"measured": {"sequences": 8}}, "is damaged: KeyError..tokens"),
        ({"max_num_seqs": "many"}, "is damaged: sizes of its batches must be whole numbers"),
    ],
)
def test_damaged_profiles(tmp_path: Path, change: dict[str, object], said: str) -> None:
    profile = json.loads(data("h200_llama-3.1-8b.json").read_text()) | change
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    with pytest.raises(InputError, match=said):
        timing(str(path))


def test_profiles_say_where_they_come_from() -> None:
    for name in PROFILES:
        about = shipped(name).about
        for key in ("gpu", "driver", "engine", "torch", "date", "command", "dtype"):
            assert about[key], (name, key)
        assert data(PROFILES[name].replace(".json", ".iterations.parquet")).stat().st_size < 2**20


@pytest.mark.parametrize("name", [n for n in timing_names() if n in PROFILES])
def test_every_profile_is_a_timing_model(name: str) -> None:
    model = timing(name)
    assert isinstance(model, TimingModel)
    assert model.num_gpu_blocks
    small = model.iteration_time(Batch(decode_seqs=1, context_tokens=100))
    large = model.iteration_time(Batch(decode_seqs=256, context_tokens=256_000))
    assert 0.002 < small < large < 0.2


# The smallest model on an H100 decodes about as fast as that host's CPU launches (docs/timing.md)
SLOW_CPU = {"h100/llama-3.2-3b": (0.045, 0.095)}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_describe_the_iterations_that_were_recorded(name: str) -> None:
    """The median decoding iteration of each recorded shape, against the GPU's clock alone.

    Only up to the largest CUDA graph: a larger one waits for the CPU that launches it.
    """
    about = shipped(name).about
    rows = pd.read_parquet(data(PROFILES[name].replace(".json", ".iterations.parquet")))
    took = rows["done_ns"].diff() / 1e9
    alone = (rows["prefill_tokens"] == 0) & (rows["prefill_tokens"].shift(1) == 0)
    alone &= (rows["prefill_tokens"].shift(-1) == 0) & (rows["max_context"] < 4000)
    alone &= rows["decode_seqs"] <= about["cudagraph_capture_sizes"][-1]
    shapes = rows[alone].assign(took=took[alone]).groupby(["label", "decode_seqs"])
    recorded = shapes[["took", "context_tokens"]].median()[shapes.size() >= 4].reset_index()
    clocks = shipped(name).pipeline(about["max_num_batched_tokens"], about["max_num_seqs"])
    predicted = [
        clocks.gpu_ps(Batch(decode_seqs=int(n), context_tokens=int(c))) / PS
        for n, c in zip(recorded["decode_seqs"], recorded["context_tokens"], strict=True)
    ]
    error = np.abs(np.array(predicted) / recorded["took"] - 1)
    assert len(error) > 50
    assert error.mean() < SLOW_CPU.get(name, (0.03, 0.05))[0]


def test_held_out_errors_are_stored_and_as_documented() -> None:
    for name in PROFILES:
        held_out = shipped(name).about["errors"]["cpu_speed_known"]
        assert held_out["decode"]["mean"] < SLOW_CPU.get(name, (0.03, 0.05))[1], name
        assert held_out["mixed, without"]["median"] < 0.07, name


def test_capture_sizes_are_vllms() -> None:
    # printed by vLLM 0.26.0 at max_num_seqs 512 and at 64
    about = shipped("h200/llama-3.1-8b").about
    assert capture_sizes(512, 2048).tolist() == about["cudagraph_capture_sizes"]
    assert capture_sizes(64, 2048).tolist() == [1, 2, 4, *range(8, 129, 8)]


def test_a_slower_cpu_takes_longer_where_it_is_the_slower_clock() -> None:
    best, slow = timing("h200/llama-3.1-8b"), timing("h200/llama-3.1-8b:cpu=2")
    short = Batch(prefill_tokens=600, prefill_seqs=1, chunk_context=180_300)
    assert slow.iteration_time(short) > 1.5 * best.iteration_time(short)
    long = Batch(decode_seqs=256, context_tokens=256_000)
    assert slow.iteration_time(long) == best.iteration_time(long)
    assert slow.name == "h200/llama-3.1-8b:cpu=2"


def test_a_slower_gpu_takes_longer_where_it_is_the_slower_clock() -> None:
    plain, slow = timing("h200/llama-3.1-8b"), timing("h200/llama-3.1-8b:gpu=1.5")
    long = Batch(decode_seqs=256, context_tokens=256_000)
    assert slow.iteration_time(long) == pytest.approx(1.5 * plain.iteration_time(long), rel=1e-4)
    clocks, slowed = (one.pipeline(2048, 256) for one in (plain, slow))  # type: ignore[attr-defined]
    prefill = Batch(
        prefill_tokens=900, prefill_seqs=3, chunk_context=400_000, decode_seqs=9,
        context_tokens=9000,
    )  # fmt: skip
    for batch in (long, prefill):
        assert slowed.gpu_ps(batch) == pytest.approx(1.5 * clocks.gpu_ps(batch), rel=1e-4)
        assert slowed.launch_ps(batch) == clocks.launch_ps(batch)
        assert slowed.update_ps(batch) == clocks.update_ps(batch)
    both = timing("h200/llama-3.1-8b:gpu=0.98,cpu=1.2")
    assert both.name == "h200/llama-3.1-8b:gpu=0.98,cpu=1.2"
    assert timing("h200/llama-3.1-8b:gpu=1").name == "h200/llama-3.1-8b"


def test_padding_steps_are_in_the_tables() -> None:
    tables = shipped("h200/llama-3.1-8b").tables(2048, 256)
    assert tables.decode_ps[100] != tables.decode_ps[96]
    assert len(tables.decode_ps) == 257
    assert len(tables.mixed_ps) == 2049
    assert tables.mixed_ps.dtype == np.int64


def test_the_pipeline_and_the_tables_agree_where_the_gpu_is_slower() -> None:
    profile = shipped("h200/qwen2.5-32b")
    clocks, tables = profile.pipeline(2048, 256), profile.tables(2048, 256)
    batch = Batch(decode_seqs=64, context_tokens=64_000)
    assert tables.iteration_ps(batch) == pytest.approx(clocks.gpu_ps(batch), rel=1e-6)
    batch = Batch(prefill_tokens=1984, prefill_seqs=2, decode_seqs=64, context_tokens=64_000,
                  chunk_context=2_000_000)  # fmt: skip
    assert tables.iteration_ps(batch) == pytest.approx(clocks.gpu_ps(batch), rel=1e-6)


def test_rooflines_are_estimates_of_known_worth() -> None:
    table = error_of_roofline()
    assert set(table) == set(PROFILES)
    for name, errors in table.items():
        assert errors["decode"] < 0.15, name
        assert max(errors.values()) < 0.20, name


def test_linear_timing_by_hand() -> None:
    linear = LinearTiming(0.005, 1e-5, 2e-5, 1e-8)
    batch = Batch(prefill_tokens=100, prefill_seqs=1, decode_seqs=10, context_tokens=5000)
    assert linear.iteration_time(batch) == pytest.approx(0.005 + 1e-3 + 2e-4 + 5e-5)
    assert linear.iteration_time(Batch()) == pytest.approx(0.005)


def test_gpu_datasheets_are_plausible() -> None:
    for name, gpu in gpus().items():
        assert 5e13 < gpu.bf16_flops < 2e15, name
        assert 2e11 < gpu.bandwidth_bytes_s < 1e13, name  # an L4 has GDDR6, 300 GB/s
