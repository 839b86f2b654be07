"""Heads of neural predictors: their losses against scipy and sklearn, on encoders of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.metrics import log_loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lengthwise.errors import InputError, UnknownNameError  # noqa: E402
from lengthwise.predictors import encoder, heads, load_predictor, losses, targets  # noqa: E402
from lengthwise.predictors.transformer import Transformer  # noqa: E402

RNG = np.random.default_rng(0)
KINDS = ("Answer yes or no:", "Write a long story:", "Translate:")
KIND = RNG.integers(3, size=96)
PROMPTS = [f"{KINDS[k]} case {i} of the day" for i, k in enumerate(KIND)]
LENGTHS = np.ceil(np.exp(np.array([1.0, 6.0, 3.0])[KIND] + RNG.normal(0, 0.3, 96)))
CASES: list[dict[str, Any]] = [
    {"target": "bucket", "head": "ordinal", "buckets": 4},
    {"target": "quantile", "head": "log-t"},
    {"target": "quantile", "head": "pinball"},
    {"target": "rank", "rank_loss": "pairwise"},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random encoders, from configurations."""
    tokenizer = encoder.new(PROMPTS, max_tokens=32, seed=0).tokenizer
    same: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 0}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "bert": transformers.BertConfig(**same, **small, intermediate_size=37),
        "distilbert": transformers.DistilBertConfig(
            **same, dim=32, n_layers=2, n_heads=2, hidden_dim=37
        ),
        "modernbert": transformers.ModernBertConfig(
            **same, **ids, **small, intermediate_size=37, cls_token_id=0, sep_token_id=0,
            local_attention=8, attn_implementation="eager",
        ),
        "opt": transformers.OPTConfig(
            **same, hidden_size=32, num_hidden_layers=2, ffn_dim=37, num_attention_heads=2,
            word_embed_proj_dim=32,
        ),
    }  # fmt: skip
    made = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModel.from_config(config).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "opt"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_head_on_every_encoder(
    models: dict[str, Path], name: str, case: dict[str, Any], tmp_path: Path
) -> None:
    """Fine-tuned for an epoch: what it says is well formed, and the same once saved and loaded."""
    made = Transformer(
        **case, model=str(models[name]), frozen=False, epochs=1, device="cpu", max_tokens=32
    ).fit(PROMPTS, LENGTHS)
    said = made.predict(PROMPTS)
    assert (said.predicted_tokens >= 1).all() and np.isfinite(said.predicted_tokens).all()
    if said.probabilities is not None:
        np.testing.assert_allclose(said.probabilities.sum(axis=1), 1.0)
    if case["target"] == "quantile":
        raw = made._raw(PROMPTS)  # before sorting and calibration
        assert case["head"] == "pinball" or (np.diff(raw, axis=1) > 0).all()
    made.save(tmp_path / "saved")
    loaded = load_predictor(tmp_path / "saved")
    assert loaded is not None
    again = loaded.predict(PROMPTS)
    np.testing.assert_array_equal(again.order, said.order)
    np.testing.assert_array_equal(again.refresh(np.full(96, 9)), said.refresh(np.full(96, 9)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_head_learns(case: dict[str, Any]) -> None:
    """On clear cues a small new encoder orders unseen prompts."""
    made = Transformer(**case, epochs=12, device="cpu", max_tokens=32).fit(PROMPTS, LENGTHS)
    made.novelty_ = None  # it would abstain from prompts of words that it has not seen
    unseen = [f"{KINDS[k]} case {i} of the night" for i, k in enumerate((0, 1, 2) * 6)]
    said = made.predict(unseen).order.reshape(6, 3)
    assert (said[:, 0] < said[:, 2]).all() and (said[:, 2] < said[:, 1]).all()


def test_the_log_t_loss_is_scipy_s_density_of_the_length() -> None:
    """The density of a length is that of its logarithm over the length."""
    said = torch.tensor(RNG.normal(size=(50, 3)))
    lengths = np.exp(RNG.normal(1, 2, 50))
    location, scale, df = (part.numpy() for part in heads.t_of(said))
    density = stats.t.pdf(np.log(lengths), df, location, scale) / lengths
    loss = losses.student_t(*heads.t_of(said), torch.tensor(np.log(lengths)))
    assert float(loss) == pytest.approx((-np.log(density) - np.log(lengths)).mean(), rel=1e-9)
    levels = np.array([0.05, 0.5, 0.99])
    raw = heads.read("log-t", said.numpy(), targets.Quantile(levels))
    np.testing.assert_allclose(
        raw, stats.t.ppf(levels, df[:, None], location[:, None], scale[:, None]), rtol=1e-6
    )


def test_the_cumulative_link_is_a_likelihood() -> None:
    edges = targets.bucket_edges(LENGTHS, 5)
    target = targets.Bucket(edges, (edges[1:] + edges[:-1]) / 2)
    buckets = target.outputs
    cuts = heads.Cuts(buckets).double()
    with torch.no_grad():
        cuts.gaps.copy_(torch.tensor(RNG.normal(size=buckets - 2)))
        logits = cuts(torch.tensor(RNG.normal(0, 3, (40, 1))))
    assert (np.diff(logits.numpy(), axis=1) < 0).all()
    raw = heads.read("ordinal", logits.numpy(), target)
    np.testing.assert_allclose(raw.sum(axis=1), 1.0)
    np.testing.assert_allclose(1 - raw[:, 0], expit(logits.numpy()[:, 0]))
    labels = RNG.integers(0, buckets, 40)
    told = float(losses.cumulative_link(logits, torch.tensor(labels)))
    assert told == pytest.approx(log_loss(labels, raw, labels=np.arange(buckets)), rel=1e-6)


def test_the_cumulative_link_has_gradients_where_a_bucket_is_hopeless() -> None:
    logits = torch.tensor([[80.0, 79.0], [-90.0, -91.0]], requires_grad=True)
    losses.cumulative_link(logits, torch.tensor([0, 2])).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert float(logits.grad.abs().sum()) > 0


def test_the_pairwise_loss_is_sklearn_s_log_loss_of_pairs() -> None:
    scores, labels = RNG.normal(size=30), RNG.integers(0, 6, 30)
    i, j = np.nonzero(labels[:, None] > labels[None, :])
    told = float(losses.pairwise(torch.tensor(scores)[:, None], torch.tensor(labels)))
    wanted = log_loss(np.ones(len(i)), expit(scores[i] - scores[j]), labels=[0, 1])
    assert told == pytest.approx(wanted, rel=1e-9)
    alike = torch.tensor([[2.0], [3.0], [4.0]], requires_grad=True)
    silent = losses.pairwise(alike, torch.ones(3))  # no pair: no loss, and nothing to learn
    silent.backward()
    assert (
        float(silent.detach()) == 0
        and alike.grad is not None
        and alike.grad.tolist() == [[0.0]] * 3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "bucket", "head": "ordinall"}, "did you mean 'ordinal'"),
        ({"target": "quantile", "head": "ordinal"}, "allowed: log-t, pinball"),
        ({"target": "exact", "head": "log-t"}, "target 'exact' has one head"),
        ({"target": "rank", "rank_loss": "pairwize"}, "did you mean 'pairwise'"),
    ],
)
def test_a_head_that_a_target_has_not_is_told_in_one_line(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, UnknownNameError), match=message):
        Transformer(**options)
