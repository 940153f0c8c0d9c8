"""Texts as sequences: every token is predicted once, lines count once, and what does not fit is named."""

from __future__ import annotations

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tiny_folder

from bqjax.models.transformer.text import Parts, Tokenizer, lines, parts, read_text, windows


def saved(folder, **marks):
    folder.mkdir(exist_ok=True)
    tiny_folder.tokenizer(**marks).save(str(folder / "tokenizer.json"))
    return Tokenizer(folder, 32)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {begin: saved(tmp_path_factory.mktemp("t") / "t", begin=begin) for begin in (True, False)}


@hypothesis.given(
    documents=st.lists(st.lists(st.integers(0, 27), max_size=20), min_size=1, max_size=4),
    begin=st.booleans(),
    length=st.integers(3, 9),
)
def test_every_token_is_predicted_once(documents, begin, length, tokenizers):
    text = "\n<|endoftext|>\n".join(" ".join(f"w{i}" for i in words) for words in documents)
    found = windows(text, tokenizers[begin], length)
    assert all(2 <= len(window) <= length for window in found)
    predicted = [token for window in found for token in window[1:]]
    # Without a mark, the first token of a document has nothing that it could be predicted from.
    assert predicted == [4 + i for words in documents for i in (words if begin else words[1:])]
    assert all((window[0] == 2) == begin for window in found)


def test_padding_and_truncation_of_the_folder_are_switched_off(tmp_path):
    made = saved(tmp_path, begin=True, end=True)
    assert made("w0 w1") == [2, 4, 5, 3]
    assert len(made(" ".join(["w3"] * 30))) == 32
    assert (made.begin, made.end) == ([2], [3])


def test_lines_count_once_and_are_cut(tmp_path):
    made = saved(tmp_path, begin=True, end=True)
    found, cut = lines("w0 w1\n\n  w0 w1 \nw2\r\n" + " ".join(f"w{i}" for i in range(10)), made, 6)
    assert found == [[2, 4, 5, 3], [2, 6, 3], [2, 4, 5, 6, 7, 3]] and cut == 1


@hypothesis.given(st.lists(st.integers(1, 9), min_size=2, max_size=30), st.floats(0.1, 0.9), st.integers(1, 60), st.integers(1, 60))
def test_parts_are_disjoint_and_in_order(lengths, share, most, most_test):
    sequences = [[i] * n for i, n in enumerate(lengths)]
    found = parts(sequences, share, (most, most_test))
    order = [s[0] for s in [*found.calibration, *found.test]]
    assert order == sorted(set(order)) and order[0] == 0
    assert found.calibration and found.test
    for part, limit in ((found.calibration, most), (found.test, most_test)):
        assert len(part) == 1 or sum(map(len, part)) <= limit
    assert found.unused == sum(lengths) - sum(map(len, [*found.calibration, *found.test]))


def test_the_share_holds_where_nothing_is_too_much():
    sequences = [[i] for i in range(10)]
    assert parts(sequences, 0.6, (100, 100)) == Parts(sequences[:6], sequences[6:], 0)
    assert parts(sequences, 0.6, (2, 100)) == Parts(sequences[:2], sequences[6:], 4)


@pytest.mark.data
def test_stories_have_the_tokens_that_their_model_was_given(data_dir):
    folder = data_dir / "lm" / "stories260k"
    given = np.load(folder / "tokens.npz")
    expected = [row[:n].tolist() for row, n in zip(given["test"][:40], given["test_length"][:40], strict=True)]
    tokenizer = Tokenizer(folder, 512)
    text = "\n<|endoftext|>\n".join(tokenizer._fast.decode(tokens[1:]) for tokens in expected)
    assert tokenizer.begin == [1] and tokenizer.end == []
    assert windows(text, tokenizer, 256) == expected


def test_a_tokenizer_that_does_not_fit(tmp_path):
    with pytest.raises(
        ValueError, match=r"has no tokenizer.json, by which a text becomes tokens: save the tokenizer in its fast form"
    ):
        Tokenizer(tmp_path, 32)
    made = saved(tmp_path)
    made._vocabulary = 20
    with pytest.raises(ValueError, match=r"gives token 31 \('w27'\), the network knows 20 tokens: it is the tokenizer of another"):
        made("w0 w27")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer that can be read: "):
        Tokenizer(tmp_path, 32)


def test_a_text_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="no text file"):
        read_text(tmp_path / "absent.txt")
    path = tmp_path / "t.txt"
    for content, what in (
        (b" \n", "is empty"),
        ("grün".encode("latin-1"), "is no text in UTF-8"),
        (b"\x1f\x8b0000", "is not a text in UTF-8, it is gzip data"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=what):
            read_text(path)
    path.write_bytes(b"\xef\xbb\xbf\xe9\x87\x8d words")
    assert read_text(path) == "重 words"
