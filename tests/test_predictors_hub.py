"""Model cards and the hub: read by huggingface_hub itself, with no network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.predictors.baseline import Constant, PromptLength
from lengthwise.predictors.text import Ridge
from lengthwise.training.predictor import evaluate_predictor, train_predictor

huggingface_hub = pytest.importorskip("huggingface_hub")
PROMPTS = [f"{'Tell a long tale of' if i % 2 else 'Name'} {i} dragons" for i in range(60)]
LENGTHS = np.where(np.arange(60) % 2, 300, 12) + np.arange(60) % 9


def data(path: Path, lengths: Any = LENGTHS) -> Path:
    rows = [
        json.dumps({"prompt": prompt, "output_tokens": int(length), "prompt_tokens": 7})
        for prompt, length in zip(PROMPTS, lengths, strict=True)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def read(folder: Path) -> Any:
    """The card as the hub reads it, which refuses front matter that is malformed."""
    card = huggingface_hub.ModelCard((folder / "README.md").read_text())
    assert card.data.library_name == "lengthwise" and "llm-serving" in card.data.tags
    return card


def test_a_trained_predictor_s_card_holds_what_was_measured(tmp_path: Path) -> None:
    report = train_predictor(data(tmp_path / "tales.jsonl"), out=tmp_path / "p", seed=0)
    card = read(tmp_path / "p")
    (tau,) = [r for r in card.data.eval_results if r.metric_type == "kendall_tau"]
    assert tau.metric_value == report["metrics"]["kendall_tau"]["value"]
    assert tau.dataset_name == report["data"]
    assert "On other sources it was not measured" in card.text
    for name in ("constant", "prompt-length"):
        told = report["baselines"][name]["mae"]
        assert f"{told['value']:.3g} ({told['low']:.3g} to {told['high']:.3g})" in card.text
    # one length for all, and prompts of one length, order nothing
    assert report["baselines"]["constant"]["kendall_tau"]["value"] == 0
    said = np.abs(np.median(LENGTHS) - LENGTHS).mean()
    assert report["baselines"]["constant"]["mae"]["value"] == pytest.approx(said, rel=0.2)


def test_what_was_measured_elsewhere_joins_the_card(tmp_path: Path) -> None:
    report = train_predictor(data(tmp_path / "tales.jsonl"), out=tmp_path / "p", seed=0)
    other = data(tmp_path / "turned.jsonl", LENGTHS[::-1])
    for _ in range(2):  # the second takes the first one's place
        found = evaluate_predictor(tmp_path / "p", other, card=True)
    card = read(tmp_path / "p")
    names = {result.dataset_name for result in card.data.eval_results}
    assert names == {report["data"], found["data"]}
    tau = found["metrics"]["kendall_tau"]["value"]
    assert tau < -0.5 and card.text.count(f"{tau:.3g} (") == 1
    assert load_predictor(tmp_path / "p") is not None
    constant = make_predictor("constant")
    constant.save(tmp_path / "bare")
    with pytest.raises(InputError, match=r"holds no report.json with baselines"):
        evaluate_predictor(tmp_path / "bare", other, card=True)


@pytest.mark.parametrize("name", ["constant", "prompt-length", "noisy-oracle", "ridge"])
def test_every_saved_predictor_has_a_card_that_claims_nothing_it_does_not_know(
    name: str, tmp_path: Path
) -> None:
    options = {"tau": 0.5} if name == "noisy-oracle" else {}
    made = make_predictor(name, **options).fit(PROMPTS, LENGTHS, prompt_tokens=np.full(60, 7))
    made.save(tmp_path / "p")
    card = read(tmp_path / "p")
    assert card.data.eval_results is None
    assert "Not measured." in card.text and "Not recorded" in card.text


def test_a_base_model_is_named_if_it_is_the_hub_s(tmp_path: Path) -> None:
    from lengthwise.predictors.card import card

    for model, named in (("org/encoder", "org/encoder"), ("/a/folder", None), ("minilm", None)):
        text = card("transformer", {"target": "rank", "model": model})
        assert huggingface_hub.ModelCard(text).data.base_model == named


class Api:
    """A hub of one folder on this disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **given: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **given}))
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, **given: Any) -> None:
        self.calls.append(("create_branch", given))

    def upload_folder(self, *, repo_id: str, folder_path: str, **given: Any) -> str:
        self.calls.append(("upload_folder", {"repo_id": repo_id, **given}))
        from huggingface_hub.utils import filter_repo_objects

        kept = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*")]
        for name in filter_repo_objects(kept, allow_patterns=given["allow_patterns"]):
            target = self.root / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((Path(folder_path) / name).read_bytes())
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api(tmp_path / "hub")

    def download(repo_id: str, **given: Any) -> str:
        made.calls.append(("snapshot_download", {"repo_id": repo_id, **given}))
        if not (made.root / repo_id).is_dir():
            raise OSError(f"404: {repo_id}\nand more")
        return str(made.root / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return made


def test_pushed_and_loaded_it_says_the_same(api: Api, tmp_path: Path) -> None:
    made = Ridge(target="quantile").fit(PROMPTS, LENGTHS)
    address = made.push_to_hub("me/lengths", private=True, branch="next", commit_message="new")
    assert address == "https://hub/me/lengths/commit/1"
    assert [name for name, _ in api.calls] == ["create_repo", "create_branch", "upload_folder"]
    assert api.calls[0][1] == {
        "repo_id": "me/lengths", "repo_type": "model", "private": True, "exist_ok": True,
    }  # fmt: skip
    assert api.calls[2][1]["revision"] == "next" and api.calls[2][1]["commit_message"] == "new"
    files = sorted(path.name for path in (api.root / "me/lengths").iterdir())
    assert files == ["README.md", "arrays.safetensors", "predictor.json"]
    wanted = made.predict(PROMPTS)
    for loaded in (
        Ridge.from_pretrained("me/lengths", revision="next"), load_predictor("hf:me/lengths@next"),
    ):  # fmt: skip
        assert loaded is not None and api.calls[-1][1]["revision"] == "next"
        said = loaded.predict(PROMPTS)
        np.testing.assert_array_equal(said.quantiles, wanted.quantiles)
        np.testing.assert_array_equal(
            said.refresh(np.full(60, 99)), wanted.refresh(np.full(60, 99))
        )


def test_a_folder_goes_with_its_card_and_without_what_is_no_data(api: Api, tmp_path: Path) -> None:
    train_predictor(data(tmp_path / "tales.jsonl"), out=tmp_path / "p")
    made = load_predictor(tmp_path / "p")
    (tmp_path / "p" / "custom.py").write_text("raise SystemExit")
    (tmp_path / "p" / "weights.bin").write_bytes(b"pickle")
    assert isinstance(made, Ridge)
    made.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="me/again")
    from lengthwise.predictors.hub import push_folder

    push_folder(tmp_path / "p", "me/trained")
    names = {path.name for path in (api.root / "me/trained").iterdir()}
    assert "report.json" in names and not names & {"custom.py", "weights.bin"}
    assert read(api.root / "me/trained").data.eval_results
    assert (api.root / "me/again" / "predictor.json").is_file()


def test_local_folders_and_the_wrong_class(api: Api, tmp_path: Path) -> None:
    Constant(80.0).save_pretrained(tmp_path / "c")
    assert Constant.from_pretrained(tmp_path / "c").tokens_ == 80.0
    assert not api.calls  # a folder asks nobody
    with pytest.raises(InputError, match="is a Constant, not a PromptLength"):
        PromptLength.from_pretrained(tmp_path / "c")
    with pytest.raises(InputError, match=r"no predictor 'no/body' on the hub: 404: no/body$"):
        load_predictor("hf:no/body")
    (api.root / "me" / "other").mkdir(parents=True)
    with pytest.raises(InputError, match=r"'me/other' on the hub holds no predictor\.json"):
        Constant.from_pretrained("me/other")
    with pytest.raises(InputError, match="is no saved predictor: it does not exist"):
        Constant.from_pretrained(str(tmp_path / "c2"))  # a path, and no name on the hub
    with pytest.raises(InputError, match="can't read the predictor"):
        from lengthwise.predictors.hub import push_folder

        push_folder(tmp_path, "me/nothing")
