"""`python -m benchmarks [NAME ...] [--runs N] [--list] [--table]`: run benchmarks and write results and table.

`python -m benchmarks verification` is a table of its own, with options of its own (see `benchmarks.verification`), and
`python -m benchmarks attacks` compares attacks by what they break (see `benchmarks.attacks`).
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.harness import RUNS, TABLE, UnequalResults, discover, run, table, write


def main() -> int:
    if sys.argv[1:2] == ["verification"]:
        from benchmarks import verification

        return verification.main(sys.argv[2:])
    if sys.argv[1:2] == ["attacks"]:
        from benchmarks import attacks

        return attacks.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run ours and a peer side by side.")
    parser.add_argument("names", nargs="*", help="benchmarks whose name starts so; all when none is given")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs a side, at least {RUNS}")
    parser.add_argument("--list", action="store_true", help="only list what there is")
    parser.add_argument("--table", action="store_true", help="only rewrite the table from the stored results")
    options = parser.parse_args()
    if options.runs < RUNS:
        parser.error(f"--runs must be at least {RUNS}")
    failed = 0
    if not options.table:
        found = [(m, b) for m, b in discover() if not options.names or b.name.startswith(tuple(options.names))]
        if not found:
            parser.error(f"no benchmark is called {' or '.join(options.names)}; see --list")
        for module, benchmark in found:
            if options.list:
                print(f"{benchmark.name}: {benchmark.subject} against {benchmark.peer}")
                continue
            if benchmark.peer_version is None:
                print(f"{benchmark.name}: skipped, {benchmark.peer} is not installed")
                continue
            try:
                result = run(benchmark, module, options.runs)
            except UnequalResults as error:
                print(error, file=sys.stderr)
                failed = 1
                continue
            write(result)
            memory = result["memory_ratio"]
            print(
                f"{result['name']}: ours {result['ours_s']:.3g} s, {result['peer']} {result['peer_s']:.3g} s, "
                f"ratio {result['ratio']:.2f}" + ("" if memory is None else f", memory {memory:.2f}")
            )
    if not options.list:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table())
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
