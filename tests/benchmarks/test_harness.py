"""The harness times only what is equal, alternates, and sees memory."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "harness.py"
spec = importlib.util.spec_from_file_location("benchmark_harness", SOURCE)
harness = importlib.util.module_from_spec(spec)
sys.modules["benchmark_harness"] = harness
spec.loader.exec_module(harness)


def benchmark(order, equal=True, **changes):
    return harness.Benchmark(
        name="toy",
        subject="adding",
        peer="peer",
        peer_version="1.0",
        prepare=lambda: 3,
        ours=lambda context: order.append("ours") or context + 1,
        theirs=lambda context: order.append("theirs") or context + (1 if equal else 2),
        equal=lambda a, b: a == b,
        memory=False,
        **changes,
    )


def test_unequal_results_are_never_timed():
    order = []
    with pytest.raises(harness.UnequalResults, match="different result"):
        harness.run(benchmark(order, equal=False), "toy")
    assert order == ["ours", "theirs"]


def test_sides_alternate_at_least_five_times():
    order = []
    result = harness.run(benchmark(order), "toy")
    assert order[2:] == ["ours", "theirs", "theirs", "ours"] * 2 + ["ours", "theirs"]
    assert result["ratio"] == pytest.approx(result["peer_s"] / result["ours_s"])
    assert {"name", "subject", "peer", "peer_version", "memory_ratio", "equal", "settings", "machine"} < set(result)
    with pytest.raises(ValueError, match="at least 5"):
        harness.run(benchmark([]), "toy", runs=4)


def test_peak_memory_counts_what_was_freed_before_the_end_and_not_the_preparation():
    context = np.ones(8 * harness.MIB)  # 64 MiB that belong to the preparation
    small = harness.peak_memory(lambda c: float(c[:1000].sum()), context)
    large = harness.peak_memory(lambda c: float(np.ones(16 * harness.MIB).sum()), context)
    assert small < 16 * harness.MIB
    assert 100 * harness.MIB < large < 200 * harness.MIB


def test_the_table_shows_every_result(tmp_path):
    harness.write(harness.run(benchmark([], settings={"eps": 0.1}), "toy"), tmp_path)
    page = harness.table(tmp_path)
    assert "| toy | adding | peer 1.0 |" in page
    assert "eps 0.1, runs 5" in page
    assert "Machine: cores" in page


def test_an_absent_peer_has_no_version():
    assert harness.version("numpy") == np.__version__
    assert harness.version("no-such-package-anywhere") is None
