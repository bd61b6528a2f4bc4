"""Complete verification on public instances of the verification competition, beside its tools' best times.

    python -m benchmarks verification [--families acasxu rl ...] [--budget 60] [--workers 2] [--limit N] [--all]

Every instance runs in a process with one thread, and has `--budget` seconds of wall time.  Instances are those on which
two or more of the competition's tools agree (`--all`: every one).  Results are appended to `results/verification.jsonl`
as they come, so a run that was stopped goes on where it stood; `--fresh` starts anew.  `results/verification.md` holds
the table.

Times are not like for like: ours are one `verify` call on one thread of this machine; the published ones are the
fastest of all tools, each with its start, on the competition's hardware (most with a GPU, some with 32 threads).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, machine
from holdfast.papers.vnncomp import FAMILIES, Instance, instances

RECORDS = RESULTS / "verification.jsonl"
TABLE = RESULTS / "verification.md"
RIGHT = {"unsat": "verified", "sat": "counterexample"}

Record = dict[str, Any]


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def decide(name: str, budget: float) -> Record:
    """Verify one instance; runs in a process of its own."""
    from holdfast.inputs.bounds.verify import verify
    from holdfast.papers.datasets import data_path
    from holdfast.subject.models.onnx_session import session_model

    instance = next(found for found in instances([name.split("/")[0]]) if found.name == name)
    session = session_model(data_path(f"vnncomp/{instance.family}/nets/{instance.network}.gz"), instance.network)
    verdict = verify(instance.module(), instance.asked, budget_s=budget, deployed=session.module)
    return {
        "name": name,
        "family": instance.family,
        "published": instance.verdict,
        "agreed": instance.agreed,
        "best_time_s": instance.best_time_s,
        "status": verdict.status,
        "seconds": round(verdict.seconds, 3),
        "lower": verdict.lower if abs(verdict.lower) != float("inf") else None,
        "subproblems": verdict.subproblems,
        "budget": budget,
    }


def measured(names: Sequence[str], budget: float, workers: int) -> Iterator[Record]:
    """Records in the order in which they are done."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=fresh, initializer=_one_thread) as pool:
        for done in as_completed([pool.submit(decide, name, budget) for name in names]):
            yield done.result()


def read(path: Path, budget: float) -> dict[str, Record]:
    """What an earlier run with the same budget has measured, by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {record["name"]: record for record in records if record["budget"] == budget}


def table(records: Iterable[Record], budget: float) -> str:
    """The page: a line a family, then what is wrong, if anything is."""
    kept = [record for record in records if record["agreed"]]
    lines = [
        "# Complete verification",
        "",
        "Made by `python -m benchmarks verification`.  Public instances of the verification competition on which two",
        f"or more of its tools agree; {budget:g} s of wall time on one thread each.  Published times are the fastest",
        "of all tools on the competition's hardware.",
        "",
        "| family | instances | decided | share | wrong | ours, median s | ours, mean s | published best, median s "
        "| published best, mean s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    families = [family for family in FAMILIES if any(record["family"] == family for record in kept)]
    for family in [*families, "all"]:
        here = [record for record in kept if family in (record["family"], "all")]
        if not here:
            continue
        right = sum(record["status"] == RIGHT[record["published"]] for record in here)
        ours, theirs = ([record[key] for record in here] for key in ("seconds", "best_time_s"))
        numbers = (statistics.median(ours), statistics.mean(ours), statistics.median(theirs), statistics.mean(theirs))
        cells = [family, len(here), right, f"{right / len(here):.0%}", len(wrong(here)), *(f"{n:.2f}" for n in numbers)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Ours include instances that were not decided, at the time they took."]
    lines += [
        f"- WRONG: {record['name']}: {record['status']}, published {record['published']}" for record in wrong(kept)
    ]
    facts = ", ".join(f"{key} {value}" for key, value in machine().items() if key != "threads")
    return "\n".join([*lines, "", f"Machine: {facts}."]) + "\n"


def wrong(records: Iterable[Record]) -> list[Record]:
    """Verdicts that contradict the published ones."""
    return [r for r in records if r["status"] != "unknown" and r["status"] != RIGHT.get(r["published"], r["status"])]


def chosen(found: Sequence[Instance], everything: bool, limit: int | None) -> list[str]:
    """Names of the instances to run: at most `limit` a family, evenly spaced."""
    names = []
    for family in dict.fromkeys(instance.family for instance in found):
        here = [one.name for one in found if one.family == family and (everything or one.agreed)]
        count = len(here) if limit is None else min(limit, len(here))
        names += [here[k * len(here) // count] for k in range(count)]
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; exit code 1 when a verdict is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks verification", description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--budget", type=float, default=60.0, help="seconds an instance")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--limit", type=int, help="instances a family, evenly spaced")
    parser.add_argument("--all", action="store_true", help="also instances on which fewer than two tools agree")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args(arguments)
    if options.fresh:
        RECORDS.unlink(missing_ok=True)
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    known = read(RECORDS, options.budget)
    names = [name for name in chosen(instances(options.families), options.all, options.limit) if name not in known]
    for record in measured(names, options.budget, options.workers):
        known[record["name"]] = record
        with RECORDS.open("a") as file:
            file.write(json.dumps(record) + "\n")
        mark = "" if not wrong([record]) else "  WRONG"
        print(f"{record['name']}: {record['status']} in {record['seconds']:.1f} s{mark}", flush=True)
    page = table(known.values(), options.budget)
    TABLE.write_text(page)
    print(page)
    return 1 if wrong(known.values()) else 0
