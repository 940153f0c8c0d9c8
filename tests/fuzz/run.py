"""One case: made from seed and number, read, and held against the limits of time and memory."""

from __future__ import annotations

import random
import resource
import time
import traceback
from pathlib import Path

from fuzz.targets import TARGETS, Target, quietly

__all__ = ["BYTES", "SECONDS", "Cases", "attempt", "limit_memory"]

SECONDS = 1.0  # of the processor, for one file
BYTES = 200_000_000  # of memory, for one file


class Cases:
    """All cases of a seed."""

    def __init__(self, seed: int):
        self._seed = seed
        made = [kind() for kind in TARGETS]
        self._files = {target.name: files for target in made if (files := target.files())}
        self._order = [target for target in made if target.name in self._files for _ in range(target.share)]

    def target(self, number: int) -> Target:
        return self._order[number % len(self._order)]

    def make(self, number: int) -> tuple[Target, bytes, bytes]:
        """The target, the file as it was, and the damaged one."""
        rng = random.Random(f"{self._seed} {number}")
        target = self.target(number)
        files = self._files[target.name]
        original = rng.choice(files)
        return target, original, target.damage(original, rng, files)


def limit_memory() -> None:
    """No more address space than there is now and what a file may take: what asks for more fails, touched or not."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, resource.RLIM_INFINITY))


def attempt(cases: Cases, number: int, path: Path) -> tuple[str, str | None]:
    """Reads a case: what went wrong (empty: nothing), and the message of a refusal. The file stays at ``path``."""
    target, original, damaged = cases.make(number)
    path.write_bytes(damaged)
    start = time.process_time()
    failure, message = "", None
    try:
        message = quietly(target, path, original)
    except Exception:
        failure = traceback.format_exc(limit=-3)
    took = time.process_time() - start
    return failure or (f"it took {took:.1f} s" if took > SECONDS else ""), message
