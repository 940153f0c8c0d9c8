"""Two processes joined by ``jax.distributed`` give one process's numbers, keep one state file, and survive each other."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.perturb import Codebook, Noise, NoiseCandidate, Quantize
from bqjax.sensitivity.sweeps import Candidate, sweep

pytestmark = pytest.mark.slow  # four processes that each start JAX; test_multi_device.py holds several devices

F32 = np.float32
HEARTBEAT = 8  # seconds without a sign of life after which a process counts as lost
BOUND = 100  # seconds for anything here

PROCESS = f"""
import sys
import jax
job, index, port, state, out, tests = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.distributed.initialize(
    coordinator_address="127.0.0.1:" + port,
    coordinator_bind_address="127.0.0.1:" + port,
    num_processes=2,
    process_id=int(index),
    initialization_timeout={BOUND},
    heartbeat_timeout_seconds={HEARTBEAT},
    shutdown_timeout_seconds={2 * HEARTBEAT},
)
import json
sys.path.insert(0, tests)
import test_multi_process
found = getattr(test_multi_process, job)(int(index), state)
with open(out, "w") as file:
    json.dump(found, file)
"""


# --- what is run, in one process and in two ------------------------------------------------------------------------------


def network():
    """Parameters, score and batches, the last one shorter. The weights are arrays of JAX, of NumPy and a number."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(F32)  # noqa: E731
    params = {"in": jnp.asarray(normal(4, 6)), "out": normal(6), "scale": F32(0.5), "unused": normal(3)}
    table = normal(4, 4)  # what the score closes over

    def score(p, batch):
        x, y = batch
        z = p["scale"] * jnp.tanh((x @ table) @ p["in"]) @ p["out"]
        return {"accuracy": ((z > 0) == y).sum(), "loss": jnp.square(z - y).sum()}, x.shape[0]

    return params, score, [(normal(n, 4), rng.integers(0, 2, n).astype(F32)) for n in (8, 8, 3)]


CANDIDATES = [
    Candidate(leaf="in", magnitude=0.3, draws=3),
    Candidate(leaf="in", magnitude=1.0, lower=-0.5),
    Candidate(leaf="in", perturb="uniform", magnitude=0.3, draws=6),
    Candidate(leaf="out", perturb="relative", magnitude=0.5, draws=2),
    Candidate(leaf="scale", magnitude=0.3, draws=2),
    Candidate(leaf="unused", magnitude=0.3, draws=2),
]
MORE = [*CANDIDATES, Candidate(leaf="out", perturb="collapse", magnitude=0.1)]


def run_sweep(state=None, progress=None, seed=7, candidates=CANDIDATES):
    params, score, batches = network()
    key = jax.random.key(seed)
    return sweep(score, params, batches, candidates, key=key, metric="-loss", state_path=state, progress=progress, group=1)


def table_of(result):
    """What must be the same, as JSON data; floats are written so that they are read back to the last bit."""
    rows = [[row.candidate.leaf, dict(row.metrics), row.drop, row.standard_error, list(row.drops)] for row in result.rows]
    return {"baseline": dict(result.baseline), "rows": rows, "unused": list(result.unused), "n_scores": result.n_scores}


def run_evaluator(mesh=None):
    params, score, batches = network()
    evaluator = Evaluator(score, batches[:2], mesh=mesh, group=2)
    noise = [NoiseCandidate(F32(-1), F32(1), F32(0.2 * i), jax.random.key(i)) for i in range(7)]
    book = Codebook(np.array([0.0], F32), np.array([-0.5, 0.5], F32))
    # More candidates than fill the four devices' groups, and fewer; another leaf changed, so that prefixes are computed anew.
    found = [evaluator.scores(params, ["out", "in"], Noise("gaussian"), noise[:n]) for n in (7, 1)]
    for factor in (1, 2):
        found.append(evaluator.scores({**params, "in": params["in"] * factor}, ["out"], Quantize(), [book]))
    return [evaluator.baseline(params), *found]


def as_text(data):
    """To compare data in which NaN, the standard error of one draw, equals itself."""
    return json.dumps(data)


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def everything(index, state):
    """What both processes do, as JSON data."""
    # A path of its own: the second process must neither need nor touch the file.
    own = state if index == 0 else state + ".never"
    first = run_sweep(own)
    again = run_sweep(own, candidates=MORE)
    unshared = {}
    if index == 1:
        # Without the other process, which does not take part.
        mesh = Mesh(np.array(jax.local_devices()), ("own",))
        unshared = {"scores": run_evaluator(mesh)}
    return {
        "devices": [len(jax.devices()), len(jax.local_devices())],
        "table": table_of(first),
        "again": table_of(again),
        "resumed": [first.n_resumed, again.n_resumed],
        "scores": run_evaluator(),
        "unshared": unshared,
        "other key": error_of(run_sweep, seed=index),
        "other sweep": error_of(run_sweep, own, seed=1),
        "other mesh": error_of(run_evaluator, Mesh(np.array(jax.devices()[2 * (1 - index) :][:2]), ("others",))),
    }


def slowly(index, state):
    """A sweep that leaves time for a kill between its measurements."""
    return table_of(run_sweep(state, progress=lambda *_: time.sleep(1)))


# --- starting and ending processes ---------------------------------------------------------------------------------------


class Pair:
    """Two processes that were started together; both are gone afterwards."""

    def __init__(self, folder: Path, job: str, state: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        script = folder / "process.py"
        script.write_text(PROCESS)
        # A proxy is no business of processes on one machine, and JAX warns of one.
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        self.outs = [folder / f"{job}-{i}.json" for i in range(2)]
        self.logs = [folder / f"{job}-{i}.log" for i in range(2)]
        self.processes: list[subprocess.Popen] = []
        for i in range(2):
            command = [sys.executable, script, job, str(i), str(port), state, self.outs[i], Path(__file__).parent]
            with self.logs[i].open("w") as log:
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def said(self, i: int) -> str:
        return self.logs[i].read_text(errors="replace")

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(timeout=BOUND)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found, and the state file."""
    folder = tmp_path_factory.mktemp("both")
    state = folder / "state"
    with Pair(folder, "everything", state) as pair:
        for i, process in enumerate(pair.processes):
            assert process.wait(timeout=BOUND) == 0, pair.said(i)
    return [json.loads(out.read_text()) for out in pair.outs], state


@pytest.fixture(scope="module")
def alone():
    return table_of(run_sweep())


# --- tests ------------------------------------------------------------------------------------------------------------------


def test_two_processes_give_the_numbers_of_one(both, alone):
    for found in both[0]:
        assert found["devices"] == [4, 2]
        assert as_text(found["table"]) == as_text(alone)
        assert as_text(found["again"]["rows"][:-1]) == as_text(alone["rows"])
    assert alone["unused"] == ["unused"]
    # Otherwise any mix-up of candidates would pass.
    assert len({drop for row in alone["rows"] for drop in row[4]}) == 3 + 1 + 6 + 2 + 2 + 1


def test_calls_of_an_evaluator_give_the_numbers_of_one_process(both):
    expected = run_evaluator()
    for found in both[0]:
        assert found["scores"] == expected
    # A mesh of one process's devices needs no other process.
    assert both[0][1]["unshared"]["scores"] == expected


def test_the_first_process_keeps_the_state_file_and_tells_the_others(both, alone):
    found, state = both
    n_used = sum(c.draws for c in CANDIDATES if c.leaf != "unused")
    # The second process has no file, and yet knows what it need not measure.
    assert [f["resumed"] for f in found] == [[0, n_used]] * 2
    assert as_text(found[0]["again"]) == as_text(found[1]["again"])
    assert not Path(f"{state}.never").exists()
    keys = [json.loads(line).get("k") for line in state.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 2 + 5  # a header and the baseline
    result = run_sweep(str(state))
    assert result.n_resumed == n_used
    assert as_text(table_of(result)) == as_text(alone)


def test_both_processes_refuse_what_one_must_refuse(both):
    for i, found in enumerate(both[0]):
        assert found["other key"] == "ValueError: the processes were given different key: each needs the same, and all of it"
        assert re.search(r"^ValueError: .*state belongs to another run \(key changed\)", found["other sweep"])
        assert (
            f"a mesh takes devices of this process ({i}) or of all 2 processes, got one of processes {1 - i}" in found["other mesh"]
        )


# Half a minute each: a lost process is noticed after seconds without a sign of life
@pytest.mark.parametrize("killed", [1, 0])
def test_a_process_that_is_killed_ends_the_other_and_the_state_file_goes_on(killed, tmp_path, alone):
    state = tmp_path / "state"
    with Pair(tmp_path, "slowly", state) as pair:
        deadline = time.monotonic() + BOUND
        while not state.exists() or state.read_bytes().count(b"\n") < 3:  # a header, the baseline and a measurement
            assert time.monotonic() < deadline, "\n".join(map(pair.said, range(2)))
            assert [p.poll() for p in pair.processes] == [None, None], "\n".join(map(pair.said, range(2)))
            time.sleep(0.05)
        os.kill(pair.processes[killed].pid, signal.SIGKILL)
        assert pair.processes[1 - killed].wait(timeout=60) != 0
        said = pair.said(1 - killed)
    if killed == 1:
        assert "RuntimeError: a process was lost: process 0 of 2 gets no answer from the others. The state file" in said
    else:
        # The first process coordinates; without it JAX itself may end the others before they ask it for anything.
        assert "a process was lost" in said or "another task died" in said, said
    assert not any(out.exists() for out in pair.outs)
    result = run_sweep(str(state))
    assert 0 < result.n_resumed < result.n_scores
    assert as_text(table_of(result)) == as_text(alone)
