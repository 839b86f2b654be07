"""Kinds of input: how a spoiled one is made, and what is done with it.

An input is a file or a folder, so that one that was found failing can be kept and tried again.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from lengthwise.errors import InputError
from tests.fuzz.mutate import ODD, bent, some, spoiled, worded

LONGEST_LINE = 1000  # characters of what the user is told
TEXTS = ("Name three rivers.", "Danube, Rhine, Elbe", "", "None", "write a poem of 100 words")


@dataclass(frozen=True)
class Kind:
    """``make(rng, base, folder)`` writes an input into an empty folder; ``run(input)`` uses it.

    ``base`` holds what is right, as ``prepare`` made it.
    """

    make: Callable[[Random, Path, Path], Path]
    run: Callable[[Path], None]
    prepare: Callable[[Path], None] = lambda base: None


def outcome(run: Callable[[Path], None], given: Path) -> str:
    """ "accepted", or "refused" for the library's own error in one short line.

    Everything else comes through.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            run(given)
        except InputError as error:
            line = str(error)
            if not line.strip() or len(line) > LONGEST_LINE:
                raise AssertionError(f"a message of {len(line)} characters: {line[:300]}") from None
            return "refused"
    return "accepted"


# --- traces, prompts and sessions


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": "x"}]


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda i: {"arrival_s": i / 4, "prompt_tokens": 20 + i, "output_tokens": 5 + i % 3},
    "all": lambda i: {
        "arrival_s": i / 4, "prompt_tokens": 200 + i, "output_tokens": 5 + i, "prompt": TEXTS[0],
        "session_id": f"s{i % 2}", "tenant": "a", "prefix_hashes": [1, 2 + i],
        "hash_block_tokens": 16, "deadline_s": 9.5 + i, "priority": i, "model": "m",
        "task": "chat", "temperature": 0.7, "top_p": 0.9, "tools": 2, "json_schema": False,
        "max_tokens": 50, "system_hash": 7,
    },
    "closed": lambda i: {
        "arrival_s": 0.0, "prompt_tokens": 30, "output_tokens": 6, "parent": i - 2 if i > 1 else -1,
        "think_s": 0.5,
    },
    "hashes": lambda i: {
        "arrival_s": i / 4, "prompt_tokens": 40, "output_tokens": 5, "hash_ids": [1, 2, 10 + i],
        "finish_reason": ("stop", "length")[i % 2],
    },
    "azure": lambda i: {
        "TIMESTAMP": f"2023-11-16 18:15:{i + 10}.6805900", "ContextTokens": 374 + i,
        "GeneratedTokens": 44,
    },
    "burstgpt": lambda i: {
        "Timestamp": 5 + i, "Model": "ChatGPT", "Request tokens": 472, "Response tokens": 18,
        "Total tokens": 490, "Log Type": "Conversation log",
    },
    "mooncake": lambda i: {
        "timestamp": 300 * i, "input_length": 1100, "output_length": 20, "hash_ids": [0, 1, 2 + i],
    },
    "bailian": lambda i: {
        "chat_id": i, "parent_chat_id": -1, "timestamp": 0.5 * i, "input_length": 40,
        "output_length": 5, "type": "text", "turn": 1, "hash_ids": [1, 2, 3],
    },
    "servegen": lambda i: {
        "client_id": 3, "timestamp": 0.1 * i, "input_tokens": 80, "output_tokens": 20,
    },
    "agents": lambda i: {
        "session_id": f"s{i // 4}", "idx": i % 4, "arrival_s": 0.2 * i,
        "prompt_tokens": 200 + 64 * i,
        "output_tokens": 9, "parent_idx": i % 4 - 1, "shared_blocks": 2, "n_blocks": 3,
        "think_time_s": 0.1, "agent": "a", "model": "m",
    },
    "turns": lambda i: {
        "session_id": i // 3, "turn": i % 3, "prompt_tokens": 100 * (1 + i % 3), "output_tokens": 9,
    },
    "sharegpt": lambda i: {
        "id": f"c{i}", "conversations": [
            {"from": "human", "value": TEXTS[0]}, {"from": "gpt", "value": TEXTS[1]},
            {"from": "human", "value": TEXTS[4]}, {"from": "gpt", "value": "A poem."},
        ],
    },
    "openai": lambda i: {
        "model": "m", "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": _parts(TEXTS[0])},
            {"role": "assistant", "content": TEXTS[1]},
        ],
    },
    "alpaca": lambda i: {"instruction": TEXTS[0], "input": TEXTS[i % 5], "output": TEXTS[1]},
    "answers": lambda i: {"prompt": TEXTS[0], "response": TEXTS[1 + 2 * (i % 2)], "model": "m"},
    "labels": lambda i: {"prompt": TEXTS[4], "output_tokens": 5 + i, "censored": i % 2 == 0},
    "record": lambda i: {
        "request_id": f"r{i}", "arrival_s": 1.7e9 + i, "prompt_id": "p", "prompt_tokens": 30,
        "output_tokens": 6, "finish_reason": ("stop", "length")[i % 2], "model": "m",
        "tokenizer": "none", "max_tokens": None, "tenant": "a", "session_id": None,
    },
}  # fmt: skip


def _rows(rng: Random) -> list[dict[str, Any]]:
    row = ROWS[rng.choice(list(ROWS))]
    return [row(i) for i in range(rng.choice((1, 2, 6, 12)))]


def _as_csv(rows: Any) -> bytes:
    out = io.StringIO()
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    writer = csv.writer(out)
    keys = list(dict.fromkeys(str(key) for row in rows for key in row))
    writer.writerow(keys)
    for row in rows:
        writer.writerow([row.get(key, "") for key in keys])
    return out.getvalue().encode("utf-8", "surrogatepass")


def _as_json(rows: Any) -> bytes:
    return json.dumps(rows).encode()


def _as_lines(rows: Any) -> bytes:
    lines = rows if isinstance(rows, list) else [rows]
    return "\n".join(map(json.dumps, lines)).encode()


def _as_parquet(rows: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError):
        names = list(dict.fromkeys(k for row in rows if isinstance(row, dict) for k in row))
        texts = [[str(row.get(n)) for n in names] for row in rows if isinstance(row, dict)] or [[]]
        table = pa.table({n: pa.array([t[i].encode("utf-8", "replace").decode() for t in texts])
                          for i, n in enumerate(names)})  # fmt: skip
    try:
        pq.write_table(table, out, compression="snappy" if len(rows) % 2 else "none",
                       use_dictionary=len(rows) % 3 > 0)  # fmt: skip
    except (pa.ArrowException, NotImplementedError):
        pq.write_table(pa.table({"prompt_tokens": [1], "output_tokens": [2]}), out)
    return out.getvalue()


def _trace(suffix: str, written: Callable[[Any], bytes]) -> Callable[[Random, Path, Path], Path]:
    def make(rng: Random, base: Path, folder: Path) -> Path:
        rows: Any = _rows(rng)
        how = rng.randrange(10)
        if how < 6:
            rows = bent(rows, rng)
            if not isinstance(rows, list):
                rows = [rows]
        data = written(rows)
        if how > 4:
            data = spoiled(data, rng)
        if rng.random() < 0.1:
            suffix_ = suffix + rng.choice((".gz", ".GZ"))
            data = gzip.compress(data, mtime=0)
            if rng.random() < 0.5:
                data = spoiled(data, rng)
        else:
            suffix_ = suffix.upper() if rng.random() < 0.05 else suffix
        path = folder / f"trace{suffix_}"
        path.write_bytes(data)
        return path

    return make


def _read(path: Path) -> None:
    from lengthwise.serving.workload import load_workload, read_prompts

    content = path.read_bytes()
    rng = Random(zlib.crc32(content))
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["turns"] = "all"
    if rng.random() < 0.3:
        options["closed_loop"] = True
    if rng.random() < 0.2:
        options["time_unit"] = rng.choice(("s", "ms", "us", "ns"))
    if rng.random() < 0.5:
        options["drop_zero"] = True
    if rng.random() < 0.3:
        read_prompts(path, **options)
        return
    if rng.random() < 0.6:
        options["arrivals"] = rng.choice(
            ("burst", "poisson:4", "closed:2", "constant:2", str(path))
        )
    elif rng.random() < 0.3:
        options["rate"] = 3.0
    _run(load_workload(str(path), **options), rng)


def _run(workload: Any, rng: Random, **given: Any) -> None:
    """A short simulation; workloads whose simulation would take long are left alone."""
    from lengthwise.eval.simulate import simulate
    from lengthwise.serving import Engine

    if float(np.sum(workload["output_tokens"].astype(float))) > 2e5:
        return
    options: dict[str, Any] = {
        "policy": rng.choice(("fcfs", "srtf", "mlfq", "hrrn", "priority")), "predictor": "oracle",
        "replicas": rng.choice((1, 1, 2)), "router": rng.choice(("jsq", "jsew", "prefix-affinity")),
        "engine": Engine(enable_prefix_caching=rng.random() < 0.5),
    }  # fmt: skip
    options |= given
    simulate(workload, **options).summary()


# --- bundles and predictors


def _bundles(base: Path) -> None:
    from lengthwise.policies import load_policy, load_router
    from lengthwise.policies.blend import Blend
    from lengthwise.policies.bundle import write_bundle
    from lengthwise.policies.learned import MLP
    from lengthwise.policy import SchedulingPolicy, Score
    from lengthwise.trained import TrainedOn

    rng = np.random.default_rng(0)
    names = ("prompt_tokens", "predicted_tokens")
    mlp = MLP(np.zeros(2), np.ones(2), np.array([True, False]),
              ((rng.normal(size=(4, 2)), np.zeros(4)), (rng.normal(size=(1, 4)), np.zeros(1))),
              rng.normal(size=2))  # fmt: skip
    trained = TrainedOn((("prompt_tokens", 0.0, 4.0),), ("azure-conv-2023",))
    write_bundle(SchedulingPolicy(Score("learned", mlp, names), trained_on=trained), base / "mlp")
    write_bundle(load_policy("mlfq:quantum=32+preempt:price=2+guard"), base / "mlfq")
    write_bundle(load_router("power-of-two"), base / "router")
    write_bundle(
        SchedulingPolicy(Blend(("predicted", "prompt"), (1.0, 0.5)).score("mine")), base / "blend"
    )


def _saved(base: Path) -> None:
    from lengthwise.context import Context
    from lengthwise.predictors import make_predictor

    prompts = [f"{'long' if i % 2 else 'short'} story number {i} of {i % 7}" for i in range(80)]
    lengths = np.array([400.0 if i % 2 else 20.0 for i in range(80)]) + np.arange(80) % 9
    context = Context(model=[f"m{i % 3}" for i in range(80)])
    for spec in ("ridge:exact", "ridge:bucket", "ridge:quantile", "ridge:rank", "gbdt:quantile",
                 "constant", "prompt-length"):  # fmt: skip
        name, _, target = spec.partition(":")
        made = make_predictor(name, **({"target": target} if target else {}))
        more = {"context": context} if getattr(made, "uses", None) else {}
        counts = [len(text) // 4 for text in prompts]
        made.fit(prompts, lengths, prompt_tokens=counts, **more).save(base / spec.replace(":", "-"))


def _encoders(base: Path) -> None:
    from lengthwise.predictors import make_predictor

    prompts = [f"{'long' if i % 2 else 'short'} story number {i}" for i in range(40)]
    lengths = np.array([400.0 if i % 2 else 20.0 for i in range(40)]) + np.arange(40) % 9
    made = make_predictor("transformer", target="bucket", max_tokens=16, epochs=1)
    made.fit(prompts, lengths).save(base / "transformer")


def _folder(weights: str) -> Callable[[Random, Path, Path], Path]:
    """A folder of JSON and safetensors in which something is changed."""

    def make(rng: Random, base: Path, folder: Path) -> Path:
        source = rng.choice(sorted(base.iterdir()))
        path = folder / "saved"
        shutil.copytree(source, path)
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".md")
        if rng.random() < 0.03:
            rng.choice(files).unlink()
        elif rng.random() < 0.03:
            found = rng.choice(files)
            found.unlink()
            how = rng.randrange(4)
            if how == 0:
                found.symlink_to("/dev/zero")
            elif how == 1:
                found.symlink_to(found.name)
            elif how == 2:
                os.mkfifo(found)
            else:
                found.mkdir()
        for found in dict.fromkeys(rng.choice(files) for _ in range(rng.choice((1, 1, 2)))):
            if not found.is_file() or found.is_symlink():
                continue
            data = found.read_bytes()
            if found.suffix == ".json" and rng.random() < 0.75:
                try:
                    found.write_text(json.dumps(bent(json.loads(data), rng)))
                    continue
                except ValueError:
                    pass
            if found.suffix == ".safetensors" and rng.random() < 0.8:
                found.write_bytes(_tensors(data, rng))
                continue
            found.write_bytes(spoiled(data, rng))
        return path

    return make


def _tensors(data: bytes, rng: Random) -> bytes:
    """safetensors with an array that is gone, cut, spoiled or of another type."""
    from safetensors.numpy import load, save

    arrays = dict(load(data))
    for _ in range(rng.choice((1, 1, 3))):
        if not arrays:
            break
        key = rng.choice(sorted(arrays))
        value, how = arrays[key], rng.randrange(8)
        if how == 0:
            del arrays[key]
        elif how == 1 and value.ndim:
            arrays[key] = value[:-1]
        elif how in (2, 3) and value.size:
            arrays[key] = value.copy()
            odd = [np.nan, np.inf, -1e300, 1e30, 0] if value.dtype.kind == "f" else [-1, 2**40, 0]
            with np.errstate(all="ignore"):
                arrays[key].flat[rng.randrange(value.size)] = np.array(rng.choice(odd)).astype(
                    value.dtype
                )
        elif how == 4:
            arrays[key] = value.reshape(-1, 1)
        elif how == 5:
            kind = rng.choice((np.float32, np.int8, np.bool_, np.uint64, np.float16))
            with np.errstate(all="ignore"):
                arrays[key] = value.astype(kind)
        elif how == 6:
            arrays[key] = np.concatenate((np.atleast_1d(value),) * 2)
        else:
            arrays[key] = value[..., ::-1] if value.ndim else value
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()})


def _use_policy(spec: Any) -> None:
    from lengthwise.policies import load_policy

    _run(_small(), Random(0), policy=load_policy(spec), replicas=1, router="jsq")


def _use_router(spec: Any) -> None:
    from lengthwise.policies import load_router

    _run(_small(), Random(0), policy="fcfs", replicas=3, router=load_router(spec))


def _use_bundle(path: Path) -> None:
    described = (path / "policy.json").read_bytes() if (path / "policy.json").is_file() else b""
    (_use_router if b'"routing"' in described else _use_policy)(str(path))


def _use_predictor(path: Any) -> None:
    from lengthwise.context import Context
    from lengthwise.predictors import load_predictor

    predictor = load_predictor(path)
    if predictor is None or predictor.needs - {"prompt", "prompt_tokens"}:
        return
    prompts = [*TEXTS, "x" * 3000, "\x00\ud83d", "世界" * 50]
    counts = [max(1, len(text) // 4) for text in prompts]
    predictor.predict(prompts, prompt_tokens=counts)
    if getattr(predictor, "uses", None):
        rows = [{"model": f"m{i}", "previous_tokens": 3 * i} for i in range(len(prompts))]
        predictor.predict(prompts, prompt_tokens=counts, context=Context.each(rows))


@cache
def _small() -> Any:
    from lengthwise.workload import Workload

    n = 12
    return Workload(
        {
            "arrival_s": np.arange(n) / 8, "prompt_tokens": 30 + np.arange(n) % 5,
            "output_tokens": 5 + np.arange(n) * 3 % 11, "priority": np.arange(n) % 3,
            "prompt": np.array(TEXTS * 3, dtype=object)[:n],
        },
        name="small",
    )  # fmt: skip


# --- spellings

SPELLED: dict[str, tuple[str, ...]] = {
    "policy": (
        "fcfs", "sjf", "srtf", "srtf-refreshed", "mlfq:quantum=64,levels=6", "hrrn",
        "priority:age_s=3", "weighted-sjf", "srtf+preempt:price=2,margin=1.5",
        "srtf+admit:reserve=0.5", "srtf+guard:ratio=3,floor_s=1", "./policy.py:score", "work",
        "fcfs+preempt:mode=recompute,max_per_step=2,protect_after=1",
    ),
    "router": (
        "round-robin", "random", "jsq:choices=2", "least-tokens", "power-of-two", "jsew",
        "weighted-round-robin", "least-load", "lmetric", "prefix-affinity", "min-min", "max-min",
        "max-capacity", "./policy.py:score",
    ),
    "predictor": (
        "oracle", "noisy-oracle:tau=0.5", "noisy-oracle:tau=0.5,bias=1.2", "none", "constant",
        "constant:tokens=100", "prompt-length", "ridge", "base",
    ),
    "nodes": (
        "2xh200/llama-3.1-8b", "h200/llama-3.1-8b,roofline:l40s/llama-3.1-8b",
        "1xroofline:2xh100/llama-3.1-70b,2xh200/qwen2.5-14b:cpu=1.5", "h200/llama-3.1-8b@0.26.0",
    ),
    "timing": (
        "h200/llama-3.1-8b", "h200/llama-3.1-8b:cpu=1.5", "roofline:l40s/llama-3.1-8b",
        "roofline:2xh100/llama-3.1-70b", "h200/qwen2.5-32b@0.26.0", "profile.json",
    ),
    "arrivals": (
        "poisson:8", "gamma:8,cv=2", "bursty:8,ratio=5,share=0.1,dwell_s=10", "constant:8", "burst",
        "closed:32,think_s=2", "azure-conv-2023",
    ),
    "workload": ("azure-conv-2023", "burstgpt", "reasoning", "trace.csv", "hf:nothing:train"),
    "scenarios": ("presets", "unequal", "scenarios.json"),
    "slo": ("ttft=1,tpot=0.05", "e2e=20", "ttft=0.5"),
}  # fmt: skip
TUNED = ("quantum", "levels", "ratio", "floor_s", "tau", "cv", "share", "choices", "price", "cpu",
         "tokens", "reserve", "think_s", "bias", "dwell_s", "margin", "mode", "target")  # fmt: skip


def _spelling(rng: Random, base: Path, folder: Path) -> Path:
    what = rng.choice(list(SPELLED))
    text = rng.choice(SPELLED[what])
    how = rng.randrange(5)
    if how < 3:
        text = worded(text, rng)
    if how in (2, 3):
        text += ":,"[":" in text] + f"{rng.choice(TUNED)}={str(rng.choice(ODD))[:40]}"
    if how == 4 and "=" in text:
        at = text.rindex("=")
        text = f"{text[: at + 1]}{str(rng.choice(ODD))[:40]}"
    path = folder / "spelled.json"
    path.write_text(json.dumps({what: text}))
    return path


def _use_spelling(path: Path) -> None:
    ((what, text),) = json.loads(path.read_text()).items()
    if "\x00" in text or any(0xD800 <= ord(c) < 0xE000 for c in text):
        text = (
            text.encode("utf-8", "replace").decode().replace("\x00", "\\0")
        )  # no argument has one
    rng = Random(0)
    if what == "policy":
        _use_policy(text)
    elif what == "router":
        _use_router(text)
    elif what == "predictor":
        _use_predictor(text)
        _run(_small(), rng, predictor=text)
    elif what == "nodes":
        from lengthwise.serving.nodes import read_nodes
        from lengthwise.serving.options import DEFAULT_TIMING, Engine

        if sum(kind.count for kind in read_nodes(text, Engine(), DEFAULT_TIMING)) <= 64:
            _run(_small(), rng, nodes=text)
    elif what == "timing":
        _run(_small(), rng, timing=text)
    elif what == "arrivals":
        from lengthwise.serving.workload import join

        _run(join(_small(), text, n=12), rng)
    elif what == "workload":
        from lengthwise.serving.workload import load_workload

        _run(load_workload(text, requests=10), rng)
    elif what == "scenarios":
        from lengthwise.envs.scenarios import read_scenarios

        read_scenarios(text)
    else:
        from lengthwise.eval import metrics

        metrics.parse_slo(text, tuple(metrics.PER_REQUEST))


# --- files that describe: profiles, nodes, scenarios, runs


def _described(name: str, *contents: Any) -> Callable[[Random, Path, Path], Path]:
    def make(rng: Random, base: Path, folder: Path) -> Path:
        content = rng.choice(contents)
        if callable(content):
            content = content()
        how, path = rng.randrange(10), folder / name
        text = json.dumps(bent(content, rng) if how < 7 else content)
        if name.endswith(".yaml"):
            import yaml

            text = yaml.safe_dump(json.loads(text))
        data = text.encode()
        path.write_bytes(spoiled(data, rng) if how > 5 else data)
        return path

    return make


def _listed(rng: Random, base: Path, folder: Path) -> Path:
    rows: Any = EVENTS[0]
    if rng.random() < 0.6:
        rows = bent(rows, rng)
    data = _as_csv(rows)
    path = folder / "events.csv"
    path.write_bytes(spoiled(data, rng) if rng.random() < 0.5 else data)
    return path


def _profile() -> Any:
    import lengthwise.serving.timing

    path = Path(lengthwise.serving.timing.__file__).parent / "data" / "h200_llama-3.1-8b.json"
    return json.loads(path.read_text())


NODES = (
    [{"count": 2, "timing": "h200/llama-3.1-8b", "speed": 0.5, "name": "a", "policy": "srtf",
      "max_num_seqs": 8}, {"role": "both", "max_num_batched_tokens": 4096}],
    {"nodes": [{"count": 1, "num_gpu_blocks": 4000, "enable_prefix_caching": True}]},
)  # fmt: skip
EVENTS = (
    [{"kind": "slow", "node": 0, "at_s": 0.5, "until_s": 1.0, "factor": 3},
     {"kind": "slow", "node": "b", "at_s": 0.2, "factor": 1.5}],
    {"events": [{"kind": "slow", "node": "a"}]},
)  # fmt: skip
SCENARIOS = (
    [{"workload": "azure-conv-2023", "rate": 2.0, "requests": 20, "name": "a"}],
    {"defaults": {"requests": 20, "predictor": "oracle"}, "scenarios": [
        {"workload": ["burstgpt", "reasoning"], "rate": [1, 2], "replicas": 2, "router": "jsq"},
        {"workload": "sharegpt", "rate": 1.5, "span": [0, 0.5], "engine": {"max_num_seqs": 8},
         "nodes": [{"count": 2}], "metrics_interval_s": 0.5, "policy": "fcfs"}]},
)  # fmt: skip


def _use_profile(path: Path) -> None:
    _run(_small(), Random(0), timing=str(path))


def _use_nodes(path: Path) -> None:
    from lengthwise.serving.nodes import read_nodes
    from lengthwise.serving.options import DEFAULT_TIMING, Engine

    if sum(kind.count for kind in read_nodes(str(path), Engine(), DEFAULT_TIMING)) <= 64:
        _run(_small(), Random(0), nodes=str(path))


def _use_events(path: Path) -> None:
    from lengthwise.policies import load_policy, load_router
    from lengthwise.serving import Engine, Node, System, run
    from lengthwise.serving.events import read_events
    from lengthwise.serving.timing import timing

    model, policy = timing("h200/llama-3.1-8b"), load_policy("fcfs")
    nodes = tuple(Node(Engine(), model, policy, name=name) for name in ("a", "b"))
    run(_small(), System(nodes, load_router("jsq"), events=read_events(path)), seed=0)


def _use_scenarios(path: Path) -> None:
    from lengthwise.envs.scenarios import read_scenarios

    for one in list(read_scenarios(str(path)))[:2]:
        if one.requests <= 100 and len(one.system.nodes) <= 64:
            one(0)


# --- command lines

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("simulate", "trace.csv", "--policy", "srtf", "--predictor", "oracle"),
    ("simulate", "prompts.jsonl", "--arrivals", "poisson:4", "--seed", "3", "--router", "jsq"),
    ("simulate", "trace.csv", "--rate", "2", "--replicas", "2", "--out", "out"),
    ("simulate", "azure-conv-2023", "--requests", "20", "--slo", "ttft=1,tpot=0.05"),
    ("simulate", "trace.csv", "--max-num-seqs", "4", "--block-size", "16", "--nodes", "nodes.json"),
    ("simulate", "trace.csv", "--timing", "h200/llama-3.1-8b:cpu=1.2", "--backend", "reference"),
    ("compare", "trace.csv", "--policies", "fcfs,srtf", "--rates", "2", "--seeds", "1",
     "--processes", "1"),
    ("capacity", "trace.csv", "--slo", "ttft_p99=1.0", "--seeds", "1", "--processes", "1"),
    ("evaluate", "predictor", "prompt-length", "prompts.jsonl"),
    ("evaluate", "predictor", "saved", "prompts.jsonl", "--split", "all", "--max-rows", "5"),
    ("evaluate", "policy", "mlp", "trace.csv", "--requests", "10", "--seeds", "1"),
    ("export", "mlfq:quantum=64", "--to", "bundle"), ("export", "run", "--to", "bundle"),
    ("list", "policies"), ("list", "workloads"), ("--version",), ("--help",),
)  # fmt: skip
# options at whose absurd values work is done as asked, and takes as long as it takes
BOUNDED = {"--seeds": 2, "--requests": 200, "--budget": 8, "--processes": 1, "--replicas": 3}


def _command(rng: Random, base: Path, folder: Path) -> Path:
    words = list(rng.choice(COMMANDS))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(words))
        how = rng.randrange(6)
        if how == 0:
            words[at] = worded(words[at], rng)
        elif how == 1:
            words[at] = str(rng.choice(ODD))[:60]
        elif how == 2:
            del words[at]
        elif how == 3:
            words[at:at] = some(rng, rng.choice(COMMANDS), 2)
        elif how == 4:
            words += rng.choice(COMMANDS)[1:]
        else:
            words += [rng.choice(("--rate", "--seed", "--requests", "--time-unit", "--policy",
                                  "--metrics-interval", "--timing", "--split", "--arrivals",
                                  "--max-num-batched-tokens", "--num-gpu-blocks", "--model")),
                      str(rng.choice(ODD))[:40]]  # fmt: skip
        if not words:
            break
    path = folder / "command.json"
    path.write_text(json.dumps(words))
    return path


def _told(word: Any) -> str:
    return str(word).encode("utf-8", "replace").decode().replace("\x00", "\\0")


def _use_command(path: Path) -> None:
    from lengthwise.training.cli import main

    words = [_told(word) for word in json.loads(path.read_text())]
    for place, word in enumerate(words[:-1]):
        if word in BOUNDED:
            try:
                words[place + 1] = str(min(int(float(words[place + 1])), BOUNDED[word]))
            except (ValueError, OverflowError):
                continue
    if {"profile", "reproduce", "demo", "train"} & set(words):
        return
    out, err = io.StringIO(), io.StringIO()
    with chdir(path.parent), redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    if code == 2:
        raise InputError(lines[-1] if lines else "")
    assert code in (0, None), (code, err.getvalue()[-300:])


def _beside(make: Callable[[Random, Path, Path], Path]) -> Callable[[Random, Path, Path], Path]:
    """The same, with files to be named lying beside it."""

    def made(rng: Random, base: Path, folder: Path) -> Path:
        path = make(rng, base, folder)
        beside(folder)
        return path

    return made


def beside(folder: Path) -> None:
    """Files that spellings and command lines name."""
    rows = [{**ROWS["plain"](i), "prompt": f"question {i}"} for i in range(20)]
    (folder / "trace.csv").write_bytes(_as_csv(rows))
    lines = [{"prompt": f"question {i}", "response": "word " * (1 + i)} for i in range(20)]
    (folder / "prompts.jsonl").write_bytes(_as_lines(lines))
    (folder / "nodes.json").write_text(json.dumps(NODES[0]))
    (folder / "scenarios.json").write_text(json.dumps(SCENARIOS[0]))
    (folder / "profile.json").write_text(json.dumps(_profile()))
    (folder / "policy.py").write_text("def score(prompt_tokens):\n    return prompt_tokens\n")


def _in_place(run: Callable[[Path], None]) -> Callable[[Path], None]:
    def there(path: Path) -> None:
        with chdir(path.parent):
            run(path.absolute())

    return there


KINDS: Mapping[str, Kind] = {
    "csv": Kind(_trace(".csv", _as_csv), _read),
    "json": Kind(_trace(".json", _as_json), _read),
    "jsonl": Kind(_trace(".jsonl", _as_lines), _read),
    "parquet": Kind(_trace(".parquet", _as_parquet), _read),
    "bundle": Kind(_folder("weights.safetensors"), _use_bundle, _bundles),
    "predictor": Kind(_folder("arrays.safetensors"), lambda p: _use_predictor(p), _saved),
    "encoder": Kind(_folder("model.safetensors"), lambda p: _use_predictor(p), _encoders),
    "spelling": Kind(_beside(_spelling), _in_place(_use_spelling)),
    "profile": Kind(_described("profile.json", _profile), _use_profile),
    "nodes-json": Kind(_described("nodes.json", *NODES), _use_nodes),
    "nodes-yaml": Kind(_described("nodes.yaml", *NODES), _use_nodes),
    "events-json": Kind(_described("events.json", *EVENTS), _use_events),
    "events-csv": Kind(_listed, _use_events),
    "scenarios": Kind(_described("scenarios.json", *SCENARIOS), _use_scenarios),
    "command": Kind(_beside(_command), _in_place(_use_command)),
}
