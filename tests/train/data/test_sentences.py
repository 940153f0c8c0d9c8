"""Tables of sentences, and a probe against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from train.data.sentences import read_sst2, read_sts, tokens_of
from train.tasks.sentences import fit_probe, load_encoder


def test_pairs_with_quotation_marks_and_further_columns(tmp_path):
    rows = ['main\tMSRvid\t2012\t0\t5.000\tA "plane.\tA plane.', "main\tMSRvid\t2012\t1\t0.25\tA dog\tA cat\tsource"]
    (tmp_path / "sts-dev.csv").write_text("\n".join(rows) + "\n")
    found = read_sts(tmp_path, "dev")
    assert found.first == ['A "plane.', "A dog"] and found.second == ["A plane.", "A cat"] and found.scores.tolist() == [5.0, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\tb\n", "line 1 has 2 columns"), ("g\tf\ty\t1\t6\ta\tb\n", "from 0 to 5"), ("g\tf\ty\t1\thigh\ta\tb\n", "is no number")],
)
def test_tables_that_are_damaged(tmp_path, text, message):
    (tmp_path / "sts-test.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sts(tmp_path, "test")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"sts-train.csv is missing: it is part of STS-B"):
        read_sts(tmp_path, "train")
    with pytest.raises(ValueError, match=r"config.json is missing"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer.json is missing"):
        tokens_of(tmp_path, ["a"])
    (tmp_path / "t.tsv").write_text("sentence\tlabel\nfine\t2\n")
    with pytest.raises(ValueError, match="labels must be 0 or 1, got '2'"):
        read_sst2(tmp_path / "t.tsv")
    (tmp_path / "t.tsv").write_text("fine\t1\n")
    with pytest.raises(ValueError, match="first line must be sentence and label"):
        read_sst2(tmp_path / "t.tsv")


def test_the_published_tables(data_dir):
    folder = data_dir / "text"
    assert [len(read_sts(folder, split).scores) for split in ("train", "dev", "test")] == [5749, 1500, 1379]
    sentences, labels = read_sst2(folder / "sst2_dev.tsv")
    assert len(sentences) == len(labels) == 872


def test_the_probe_is_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = (x @ [1, -2, 0.5, 0] + rng.normal(size=60) > 0).astype(int)
    other = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(fit_probe(x, y), [*other.coef_[0], other.intercept_[0]], atol=1e-4)
