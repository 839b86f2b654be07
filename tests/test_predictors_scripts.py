"""Texts without blanks between words, long texts, and predictors saved before these were read."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.feature_extraction.text import TfidfVectorizer

from lengthwise.chat import Message, asked
from lengthwise.policies.plugins.calls import call_of
from lengthwise.predictors import features, load_predictor, make_predictor
from lengthwise.predictors.features import TextFeatures
from lengthwise.served_text import HEAD, TAIL, asked_texts, served_text

FORMS = {
    "一句话": 20, "一首短诗": 60, "三点": 90, "一段话": 150, "一封邮件": 220, "详细步骤": 450,
    "一篇文章": 800, "一个长篇故事": 1600,
}  # fmt: skip
TOPICS = ["春天", "机器学习", "我的家乡", "城市交通", "中国历史", "健康饮食", "足球比赛", "太空"]
ASKS = ["请用{form}介绍{topic}。", "帮我写{form}，主题是{topic}", "关于{topic}，给我{form}！"]


def chinese(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    prompts, lengths = [], []
    for _ in range(n):
        form = rng.choice(list(FORMS))
        ask = str(rng.choice(ASKS)) + f"（第{rng.integers(1, 100)}次）"
        prompts.append(ask.format(form=form, topic=rng.choice(TOPICS)))
        lengths.append(FORMS[form] * np.exp(rng.normal(0, 0.35)))
    return prompts, np.maximum(lengths, 1).round()


@pytest.mark.parametrize("name", ["ridge", "gbdt"])
def test_chinese_prompts_are_read(name):
    made = make_predictor(name).fit(*chinese(400, 0))
    prompts, came = chinese(200, 1)
    assert kendalltau(made.predict(prompts).predicted_tokens, came)[0] > 0.6


def test_character_terms_are_those_of_scikit_learn():
    texts = ["请写一首短诗", "写一首诗", "请介绍春天", "春天的短诗"]
    theirs = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    weights = theirs.fit_transform(texts).toarray()
    ours = TextFeatures.fit(texts)
    assert ours.terms == tuple(theirs.get_feature_names_out())
    rows = ours.rows(texts)
    for row in range(len(texts)):
        at = slice(rows.starts[row], rows.starts[row + 1] - 14)
        found = np.zeros(len(ours.terms))
        found[rows.columns[at]] = rows.values[at]
        np.testing.assert_allclose(found, weights[row], atol=1e-12)


def test_a_predictor_of_the_first_format_still_says_what_it_said(tmp_path, monkeypatch):
    prompts, lengths = chinese(80, 2)
    prompts = [f"{p} write words {len(p)}" for p in prompts]
    fit = TextFeatures.fit.__func__

    def first(cls, texts):  # as it was: a run of characters is a word
        monkeypatch.setattr(features, "UNSPACED", re.compile("(?!)"))
        found = replace(fit(cls, texts), version=1)
        monkeypatch.undo()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextFeatures, "fit", classmethod(first))
        made = make_predictor("ridge").fit(prompts, lengths)
    made.save(tmp_path / "p")
    described = json.loads((tmp_path / "p" / "predictor.json").read_text())
    assert described["state"].pop("features") == 1
    assert any(" " not in term and len(term) > 5 for term in described["state"]["terms"])
    (tmp_path / "p" / "predictor.json").write_text(json.dumps(described))
    loaded = load_predictor(tmp_path / "p")
    np.testing.assert_array_equal(
        loaded.predict(prompts).predicted_tokens, made.predict(prompts).predicted_tokens
    )


def test_long_texts_are_read_at_both_ends_and_alike_everywhere():
    long = "begin " + "filler " * 200_000 + "the end?"
    read = served_text(long)
    assert len(read) == HEAD + TAIL and read.startswith("begin") and read.endswith("the end?")
    wrapped = f"<|im_start|>user\n{long}<|im_end|>\n<|im_start|>assistant\n"
    message = {"role": "user", "content": [{"type": "text", "text": long}]}
    assert call_of({"messages": [message]}).asked == read == served_text(wrapped)
    assert (
        asked_texts({"asked": [long], "prompt": ["x"]}) == [read] == asked_texts({"prompt": [long]})
    )
    assert asked([Message("user", "short")]) == "short"
