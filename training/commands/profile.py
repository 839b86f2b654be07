"""``lengthwise profile``: iteration times measured on this machine's GPU."""

from __future__ import annotations

import click

from lengthwise.training.commands.folders import force_option
from lengthwise.training.commands.options import Name


@click.command()
@click.option("--engine", type=Name("engine", ("vllm", "torch")), default="vllm", show_default=True)
@click.option(
    "--model",
    default="llama-3.1-8b",
    show_default=True,
    metavar="CONFIG",
    help="A known shape, or the path of a config.json; its weights are random.",
)
@click.option("--out", required=True, metavar="FILE", help="The profile (JSON).")
@click.option("--name", metavar="NAME", help="What to call it. Default: GPU/MODEL.")
@click.option(
    "--seconds",
    type=float,
    default=150.0,
    show_default=True,
    help="Limit of the sweep over batch shapes.",
)
@click.option(
    "--thoroughness",
    type=float,
    default=1.0,
    show_default=True,
    help="Scales the sweep; 1 takes about 90 s for an 8B model on an H200.",
)
@click.option("--tensor-parallel", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--max-num-seqs",
    type=click.IntRange(1),
    metavar="N",
    help="Measured up to. Default: what `vllm serve` chooses on this GPU.",
)
@click.option(
    "--max-num-batched-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Measured up to. Default: what `vllm serve` chooses on this GPU.",
)
@click.option(
    "--max-model-len",
    type=click.IntRange(1),
    metavar="N",
    help="Of the engine, where the KV cache can't hold the model's.",
)
@click.option(
    "--quantization",
    type=Name("quantization", ("fp8",)),
    help="vLLM's, of the weights; they are quantized as they are loaded.",
)
@click.option("--kv-cache-dtype", type=Name("KV cache dtype", ("fp8",)), help="vLLM's: fp8.")
@force_option
def profile(
    engine: str,
    model: str,
    out: str,
    name: str | None,
    seconds: float,
    thoroughness: float,
    tensor_parallel: int,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    max_model_len: int | None,
    quantization: str | None,
    kv_cache_dtype: str | None,
    force: bool,
) -> None:
    """Measures a model's shape on the GPU at hand; the raw iterations lie beside the profile.

    Stopped, the same command goes on from what was measured.

    \b
    lengthwise profile --engine vllm --model llama-3.1-8b --out h200.json
    lengthwise profile --model qwen2.5-32b --quantization fp8 --out fp8.json
    lengthwise simulate azure-conv-2023 --timing h200.json
    """
    from pathlib import Path

    from lengthwise.errors import InputError
    from lengthwise.serving.timing.measure import profile as measure
    from lengthwise.training.commands.show import progress
    from lengthwise.training.commands.stopped import kept, parts_kept

    if Path(out).exists() and not force:
        raise InputError(f"{out!r} is there already: name another file, or --force replaces it")
    with kept(lambda: parts_kept(out)), progress("profiling") as moved:
        written = measure(
            engine, model, out, name=name, seconds=seconds, thoroughness=thoroughness,
            tensor_parallel=tensor_parallel, max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens, max_model_len=max_model_len,
            quantization=quantization, kv_cache_dtype=kv_cache_dtype, force=force, progress=moved,
            say=lambda line: click.echo(line, err=True),
        )  # fmt: skip
    click.echo(f"wrote {written}")
