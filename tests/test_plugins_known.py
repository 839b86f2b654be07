"""What plugins know of a request beside its prompt reaches the predictor, and the record."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq

from lengthwise.context import COLUMNS, Context
from lengthwise.policies.plugins.calls import call_of
from lengthwise.policies.plugins.known import of_sampling, packed
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.part import Part
from lengthwise.policies.plugins.prompt_lengths import PromptLengths
from lengthwise.predictors import make_predictor
from lengthwise.serving.workload.readers import read_table


def test_sampling_parameters_are_columns_of_context():
    found = of_sampling(
        SimpleNamespace(
            temperature=0.7, top_p=float("nan"), max_tokens=50, structured_outputs=None,
            extra_args={"session_id": "s", "tenant": 7, "task": ["x"], "predicted_tokens": 3},
        ),
        "m",
    )  # fmt: skip
    assert found == {
        "model": "m", "session_id": "s", "tenant": "7", "temperature": 0.7, "max_tokens": 50.0,
        "json_schema": 0.0,
    }  # fmt: skip
    assert found.keys() <= set(COLUMNS)
    assert packed({}) == b"" and of_sampling(None, None) == {}


def test_a_call_tells_who_answers_and_how():
    call = call_of(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0,
         "tools": [{}], "response_format": {"type": "json_schema"}, "max_tokens": 9,
         "vllm_xargs": {"session_id": "s"}}
    )  # fmt: skip
    assert call.known == {
        "model": "m", "session_id": "s", "temperature": 0.0, "tools": 1.0, "json_schema": 1.0,
        "max_tokens": 9.0,
    }  # fmt: skip
    assert call_of("plain").known == {}


def test_a_router_s_predictor_hears_of_the_model(tmp_path):
    prompts = [f"say {i} words" for i in range(200)]
    models = np.where(np.arange(200) % 2, "terse", "chatty")
    lengths = np.where(models == "terse", 20, 400) + np.arange(200) % 7
    made = make_predictor("ridge").fit(prompts, lengths, context=Context(model=models))
    made.save(tmp_path / "p")
    tells = PromptLengths(tmp_path / "p", 60.0, 256.0, Counters())
    told = {}
    for model in ("terse", "chatty"):
        call = call_of({"model": model, "messages": [{"role": "user", "content": "say 9 words"}]})
        told[model] = asyncio.run(tells.of(call))[1]
    assert told["terse"] < 60 < 200 < told["chatty"]


def test_what_was_recorded_is_trained_on(tmp_path):
    part = Part(tmp_path, False, {"model": "m", "tokenizer": "t"})
    for i in range(3):
        part.add({
            "request_id": str(i), "arrival_s": 100.0 * i, "prompt_token_ids": [i],
            "prompt_tokens": 1,
            "predicted_tokens": None, "predicted_by": None, "output_tokens": 10 + i,
            "max_tokens": None if i else 64, "finish_reason": "stop", "temperature": 0.5 * i,
            "session_id": "s", "json_schema": None,
        })  # fmt: skip
    part.write()
    assert pq.read_table(tmp_path)["temperature"].to_pylist() == [0, 0.5, 1]
    table = read_table(tmp_path)
    context = Context.of(table.columns)
    assert context.temperature.tolist() == [0, 0.5, 1] and context.json_schema is None
    assert context.limits().tolist() == [64, np.inf, np.inf]
    assert context.previous_answers.tolist() == [0, 1, 2]
