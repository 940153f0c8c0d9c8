"""What stood under the name before survives whatever stops the writer."""

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from bqjax import codec

OLD, NEW = {"w": np.arange(4)}, {"a": np.random.default_rng(0).normal(size=50_000), "b": np.arange(10)}


def run(script, path):
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def unharmed(path, leftovers=0):
    np.testing.assert_array_equal(codec.load(path)["w"], OLD["w"])
    assert len(list(path.parent.iterdir())) == 1 + leftovers


def test_refuses_an_existing_file_without_force(tmp_path):
    path = tmp_path / "f"
    codec.save(path, OLD)
    with pytest.raises(ValueError, match="exists: pass force=True"):
        codec.save(path, NEW)
    unharmed(path)
    codec.save(path, NEW, force=True)
    assert codec.load(path).keys() == NEW.keys()


def test_killed_before_the_rename(tmp_path):
    path = tmp_path / "f"
    codec.save(path, OLD)
    done = run(
        """
        import os, pathlib, signal, sys
        import numpy as np
        from bqjax import codec
        pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        codec.save(sys.argv[1], {"a": np.ones(10_000)}, force=True)
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    unharmed(path, leftovers=1)


def test_a_full_disk(tmp_path):
    path = tmp_path / "f"
    codec.save(path, OLD)
    done = run(
        """
        import resource, signal, sys
        import numpy as np
        from bqjax import codec
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            codec.save(sys.argv[1], {"a": np.random.default_rng(0).normal(size=50_000)}, force=True)
        except OSError as error:
            print(error)
        """,
        path,
    )
    assert "File too large" in done.stdout, done.stderr
    unharmed(path)


def test_an_error_in_the_last_leaf(tmp_path):
    path = tmp_path / "f"
    codec.save(path, OLD)
    with pytest.raises(ValueError, match="'z' is a str"):
        codec.save(path, NEW | {"z": "text"}, force=True)
    unharmed(path)


def test_memory_is_bounded_by_a_leaf(tmp_path):
    """Ten leaves of 4 MB each are written and read within a few leaves' memory beyond the tree's own."""
    script = """
        import sys, tracemalloc
        import numpy as np
        from bqjax import codec
        leaf = np.random.default_rng(0).integers(-(2**63), 2**63, 500_000)
        tree = {str(i): leaf ^ i for i in range(10)}
        tracemalloc.start()
        codec.save(sys.argv[1], tree)
        print(tracemalloc.get_traced_memory()[1])
        """
    done = run(script, tmp_path / "f")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * 4e6
    assert (tmp_path / "f").stat().st_size > 10 * 3.9e6


def test_a_deferred_leaf_is_made_when_its_turn_comes(tmp_path):
    made = []

    def make(i):
        made.append(i)
        return np.full(3, i, np.float32)

    tree = {f"w{i}": codec.Deferred(lambda i=i: make(i)) for i in range(3)}
    assert not made
    codec.save(tmp_path / "a", tree)
    assert made == [0, 1, 2]
    codec.save(tmp_path / "b", {f"w{i}": np.full(3, i, np.float32) for i in range(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = [(name, leaf.tolist()) for name, leaf in codec.read_leaves(tmp_path / "a")]
    assert found == [(f"w{i}", [i] * 3) for i in range(3)]


def test_leaves_of_a_damaged_file_are_not_read(tmp_path):
    codec.save(tmp_path / "a", {"w": np.arange(9.0)})
    content = bytearray((tmp_path / "a").read_bytes())
    content[330] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="the checksum"):
        next(codec.read_leaves(tmp_path / "a"))
