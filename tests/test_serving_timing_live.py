"""Live timing and profiling with torch, on the CPU with a tiny model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lengthwise.errors import InputError
from lengthwise.protocols import Batch, TimingModel
from lengthwise.serving.timing import timing
from lengthwise.serving.timing.measure import profile
from lengthwise.serving.timing.measure_torch import grid_point, profile_torch

pytest.importorskip("torch")
pytest.importorskip("transformers")

TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return path


def test_a_batch_is_run_once_a_grid_point(config: Path) -> None:
    live = timing(f"live:{config}@cpu")
    assert isinstance(live, TimingModel)
    batch = Batch(decode_seqs=8, context_tokens=800)
    first = live.iteration_time(batch)
    assert first > 0
    assert live.iteration_time(batch) == first  # kept
    assert live.iteration_time(Batch(decode_seqs=8, context_tokens=808)) == first  # its neighbour
    assert len(live.measured) == 1  # type: ignore[attr-defined]


def test_more_work_takes_longer(config: Path) -> None:
    live = timing(f"live:{config}@cpu")
    little = live.iteration_time(Batch(prefill_tokens=16, prefill_seqs=1, chunk_context=136))
    much = live.iteration_time(
        Batch(prefill_tokens=16_384, prefill_seqs=64, chunk_context=64 * 256 * 128)
    )
    assert much > 2 * little


def test_grid_points_stand_for_their_batches() -> None:
    point = grid_point(
        Batch(prefill_tokens=1000, prefill_seqs=2, decode_seqs=3, context_tokens=3000,
              chunk_context=1000 * 250)
    )  # fmt: skip
    assert (point.chunks, point.decode_seqs) == (2, 3)
    assert point.chunk_tokens == pytest.approx(500, rel=0.1)
    assert point.context == pytest.approx(1000, rel=0.1)
    assert point.chunk_before == 0
    late = grid_point(Batch(prefill_tokens=100, prefill_seqs=1, chunk_context=100 * 1050))
    assert late.chunk_before == pytest.approx(1000, rel=0.1)


def test_profiling_with_torch_writes_a_profile(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    facts = {"model": "tiny", "command": "in a test"}
    profile_torch("cpu/tiny", str(config), out, facts, 8, 128, device="cpu")
    model = timing(str(out))
    assert model.name == "cpu/tiny"
    assert model.iteration_time(Batch(decode_seqs=4, context_tokens=400)) > 0
    assert (tmp_path / "tiny.iterations.parquet").exists()


def test_profiling_says_what_is_missing(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"needs 1 GPU\(s\), and torch sees 0"):
        profile(out=tmp_path / "profile.json")
    with pytest.raises(InputError, match="live timing needs a GPU"):
        timing("live:llama-3.1-8b")


def test_a_missing_engine_is_one_line(config: Path) -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        from lengthwise.serving.timing.measure_vllm import start

        with pytest.raises(InputError, match="vLLM is not installed here"):
            start(config.parent)
    else:
        pytest.skip("vLLM is installed")


def test_profiling_engines_have_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown profiling engine 'sglang'"):
        profile("sglang", out=tmp_path / "profile.json")
