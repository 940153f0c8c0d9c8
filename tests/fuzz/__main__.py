"""``make fuzz``: see the package."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fuzz.run import Cases, attempt, limit_memory


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Damages files and reads them; goes on where it was interrupted.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--only", type=int, help="one case, by its number")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cases, state = Cases(args.seed), args.out / f"next_{args.seed}"
    start = int(state.read_text()) if state.exists() else 0
    numbers = range(start, args.count) if args.only is None else [args.only]
    limit_memory()
    failed, refused, began = [], 0, time.process_time()
    for number in numbers:
        failure, message = attempt(cases, number, args.out / f"case_{args.seed}")
        refused += message is not None
        if failure:
            failed.append(number)
            print(f"case {number} ({cases.target(number).name}): {failure}", flush=True)
        if args.only is not None:
            print(message or "read")
        elif number % 1000 == 999:
            state.write_text(str(number + 1))
            if number % 50_000 == 49_999:
                print(f"{number + 1:,} files, {refused:,} refused, {time.process_time() - began:.0f} CPU s", flush=True)
    print(f"{len(numbers):,} files, {refused:,} refused, {len(failed)} failures, {time.process_time() - began:.0f} CPU s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
