"""Time ours against a peer so that the ratio means something.

In one process: build the inputs once, run both sides, refuse to go on unless their results are equal, then time at
least five runs of each in alternation (ours, peer, peer, ours, ...), so that drift of the machine falls on both.
Reported is the ratio of medians, peer / ours: above 1 ours is faster.  Peak memory is measured apart, one fresh
process a side: the highest resident size during the run above the resident size just before it.

A module of this package defines `BENCHMARKS: tuple[Benchmark, ...]`; `python -m benchmarks` finds it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLE = ROOT / "docs" / "benchmarks.md"
RUNS = 5
MIB = 2**20


def version(package: str) -> str | None:
    """Installed version of a peer, None when it is not there (the benchmark is then skipped, and says so)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Benchmark:
    """One comparison.

    `prepare()` builds what both sides need and is not timed; `ours(context)` and `theirs(context)` each do the whole
    job and return a result; `equal(ours_result, peer_result)` decides whether they did the same job.  `settings` are
    the shared settings, as a reader should see them.
    """

    name: str
    subject: str
    peer: str
    peer_version: str | None
    prepare: Callable[[], Any]
    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]
    equal: Callable[[Any, Any], bool]
    settings: Mapping[str, Any] = field(default_factory=dict)
    memory: bool = True


class UnequalResults(Exception):
    """The two sides do not compute the same thing, so their times must not be compared."""


def clock(job: Callable[[Any], Any], context: Any) -> float:
    """Wall seconds of one run."""
    began = time.perf_counter()
    job(context)
    return time.perf_counter() - began


def run(benchmark: Benchmark, module: str, runs: int = RUNS) -> dict[str, Any]:
    """Check, then time and measure one benchmark.  Raises UnequalResults, before timing, when the results differ."""
    if runs < RUNS:
        raise ValueError(f"a ratio of medians wants at least {RUNS} runs a side, got {runs}")
    context = benchmark.prepare()
    if not benchmark.equal(benchmark.ours(context), benchmark.theirs(context)):
        raise UnequalResults(f"{benchmark.name}: {benchmark.peer} gives a different result; nothing was timed")
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(runs):
        for side in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
            times[side].append(clock(getattr(benchmark, side), context))
    ours, theirs = (statistics.median(times[side]) for side in ("ours", "theirs"))
    return {
        "name": benchmark.name,
        "subject": benchmark.subject,
        "peer": benchmark.peer,
        "peer_version": benchmark.peer_version,
        "ours_s": ours,
        "peer_s": theirs,
        "ratio": theirs / ours,
        "memory_ratio": memory_ratio(module, benchmark) if benchmark.memory else None,
        "equal": True,
        "settings": {**benchmark.settings, "runs": runs, "ours_runs_s": times["ours"], "peer_runs_s": times["theirs"]},
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """What the times depend on."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def memory_ratio(module: str, benchmark: Benchmark) -> float:
    """Peak memory of the peer over ours, each in a process of its own; above 1 ours needs less."""
    peaks = {side: _peak_in_child(module, benchmark.name, side) for side in ("ours", "theirs")}
    # Below a megabyte the allocator's page granularity is all that is seen.
    return max(peaks["theirs"], MIB) / max(peaks["ours"], MIB)


def _peak_in_child(module: str, name: str, side: str) -> int:
    command = [sys.executable, "-m", "benchmarks.harness", module, name, side]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: measuring the memory of {side} failed:\n{done.stderr.strip()[-2000:]}")
    return int(done.stdout.strip().splitlines()[-1])


def peak_memory(job: Callable[[Any], Any], context: Any) -> int:
    """Bytes by which the resident size of this process rose above its level at the start while `job` ran."""
    before = _status("VmRSS")
    reset = Path("/proc/self/clear_refs")
    if before is None or not reset.exists():
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        job(context)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start
    reset.write_text("5")  # forget the peak of the preparation
    job(context)
    return max(0, (_status("VmHWM") or 0) - before)


def _status(entry: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) * 1024
    return None


def discover() -> Iterable[tuple[str, Benchmark]]:
    """(module, benchmark) of every benchmark module of this package, in order of name."""
    package = ROOT / "benchmarks"
    for found in sorted(iter_modules([str(package)]), key=lambda module: module.name):
        if found.name in ("harness", "__main__"):
            continue
        for benchmark in getattr(import_module(f"benchmarks.{found.name}"), "BENCHMARKS", ()):
            yield found.name, benchmark


def write(result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write one result as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def table(folder: Path = RESULTS) -> str:
    """The page that shows every stored result."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`.  Every row ran ours and the peer in one process, in alternation, after checking that",
        f"their results are equal; times are medians of at least {RUNS} runs.  Ratio is peer / ours: above 1 holdfast",
        "is faster.  Memory is the peer's peak over ours: above 1 holdfast needs less.  Rows `attacks-*` compare",
        "attacks that may break different examples: both sides ran on the same parts of the images, in alternation,",
        "times are CPU seconds in all, and the settings say what each broke.",
        "",
        "| benchmark | subject | peer | ours (s) | peer (s) | ratio | memory | settings |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for result in results:
        shown = ", ".join(f"{key} {value}" for key, value in result["settings"].items() if not key.endswith("runs_s"))
        memory = result["memory_ratio"]
        cells = (
            result["name"],
            result["subject"],
            f"{result['peer']} {result['peer_version']}",
            f"{result['ours_s']:.3g}",
            f"{result['peer_s']:.3g}",
            f"**{result['ratio']:.2f}**",
            "–" if memory is None else f"{memory:.2f}",
            shown,
        )
        lines.append(f"| {' | '.join(cells)} |")
    for where in sorted({json.dumps(result["machine"], sort_keys=True) for result in results}):
        facts = ", ".join(f"{key} {value}" for key, value in json.loads(where).items())
        lines += ["", f"Machine: {facts}."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measure one side's memory: the entry point of the child processes."""
    module, name, side = arguments
    (benchmark,) = (b for b in import_module(f"benchmarks.{module}").BENCHMARKS if b.name == name)
    print(peak_memory(getattr(benchmark, side), benchmark.prepare()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
