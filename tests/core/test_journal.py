"""The journal answers what was finished, survives a kill, and refuses what is not its own."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.journal import Journal, digest

PRINT = {"params": "p0", "batches": "b0"}


def never():
    raise AssertionError("measured again")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "made" / "journal"
    with Journal(path, PRINT) as journal:
        assert journal.measure("one", lambda: {"loss": 0.1}) == {"loss": 0.1}
        assert journal.measure("two", lambda: [1, 2.5]) == [1, 2.5]
        assert journal.answered == 0
    return path


def test_a_second_run_is_answered_from_the_file(path):
    with Journal(path, PRINT) as journal:
        assert len(journal) == 2
        assert journal.measure("one", never) == {"loss": 0.1}
        assert journal.measure("two", never) == [1, 2.5]
        assert journal.answered == 2
        assert journal.measure("three", lambda: 3) == 3
        assert journal.measure("three", never) == 3
        # The last was measured in this run, so it is not counted as answered by the file.
        assert journal.answered == 2
    with Journal(path, PRINT) as journal:
        assert journal.measure("three", never) == 3


def test_measurements_come_back_bit_for_bit(tmp_path):
    values = [0.1 + 0.2, 1e-323, float(np.float32(1 / 3)), -0.0, 1.7976931348623157e308, float("inf")]
    with Journal(tmp_path / "j") as journal:
        journal.measure("k", lambda: values)
    with Journal(tmp_path / "j") as journal:
        assert [v.hex() for v in journal.measure("k", never)] == [v.hex() for v in values]


def test_a_measurement_is_in_the_file_as_soon_as_it_is_made(path):
    journal = Journal(path, PRINT)
    journal.measure("three", lambda: 3)
    # Read before closing, as after a kill.
    assert json.loads(path.read_bytes().splitlines()[-1]) == {"k": "three", "v": 3}
    journal.close()


def test_a_measurement_that_fails_is_not_remembered(path):
    with Journal(path, PRINT) as journal:
        with pytest.raises(AssertionError, match="measured again"):
            journal.measure("three", never)
        assert journal.measure("three", lambda: 3) == 3


def test_a_last_line_cut_short_anywhere_is_dropped_and_the_file_goes_on(path):
    whole = path.read_bytes()
    start = len(whole.rstrip(b"\n")) - len(whole.splitlines()[-1])
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, PRINT) as journal:
            assert len(journal) == 1, cut
            journal.measure("one", never)
            assert journal.measure("two", lambda: [1, 2.5]) == [1, 2.5]
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize("line", [0, 1])
@pytest.mark.parametrize("distortion", [b"", b"{", b"[1]", b"\xff\xfe", b'{"k": [1], "v": 2}', b'{"v": 2}'])
def test_distortion_before_the_last_line_is_an_error(path, line, distortion):
    lines = path.read_bytes().splitlines()
    lines[line] = distortion
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"not a journal, or is damaged in line {line + 1}"):
        Journal(path, PRINT)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"hello\n", b"{}\n", b"3\n", b'{"bqjax-journal":1,"fingerprint":3}\n'])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a journal"):
        Journal(path, PRINT)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("fingerprint", "named"),
    [
        ({**PRINT, "params": "p1"}, r"\(params changed\)"),
        ({"params": "p1", "batches": "b1"}, r"\(batches, params changed\)"),
        ({**PRINT, "key": "k"}, r"\(key changed\)"),
        ({"params": "p0"}, r"\(batches changed\)"),
    ],
)
def test_another_fingerprint_is_refused_by_name(path, fingerprint, named):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=named):
        Journal(path, fingerprint)
    assert path.read_bytes() == before


def test_another_version_is_refused(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"bqjax-journal":1', b'"bqjax-journal":2', 1))
    with pytest.raises(ValueError, match=r"\(version changed\)"):
        Journal(path, PRINT)


def test_an_empty_file_is_started(tmp_path):
    path = tmp_path / "j"
    path.touch()
    with Journal(path, PRINT) as journal:
        journal.measure("one", lambda: 1)
    with Journal(path, PRINT) as journal:
        assert len(journal) == 1


def test_without_a_path_it_remembers_within_the_process():
    with Journal() as journal:
        assert journal.measure("one", lambda: 1) == 1
        assert journal.measure("one", never) == 1
        assert len(journal) == 1
        assert journal.answered == 0


def test_digests_tell_names_values_shapes_dtypes_and_keys_apart():
    trees = [
        {"a": np.zeros(4, np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": [np.zeros(2, np.float32), np.zeros(2, np.float32)]},
        {"a": jax.random.key(0)},
        {"a": jax.random.key(1)},
    ]
    digests = [digest(t) for t in trees]
    assert len(set(digests)) == len(trees)
    assert all(len(d) == 32 and int(d, 16) >= 0 for d in digests)
    assert digest({"a": jnp.zeros(4)}) == digests[0]
    strided = np.zeros((4, 2), np.float32)[:, 0]
    assert digest({"a": strided}) == digests[0]
