"""How long a person waits for `holdfast --help`, against the import that any tool built on torch pays first."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import Benchmark, version

HELP = "import sys; sys.argv = ['holdfast', '--help']; from holdfast.cli.main import main; sys.exit(main())"


def _exit_code(*arguments: str) -> int:
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False).returncode


BENCHMARKS = (
    Benchmark(
        name="startup",
        subject="holdfast --help",
        peer='python -c "import torch"',
        peer_version=version("torch"),
        prepare=lambda: None,
        ours=lambda _: _exit_code(
            "-c", "import sys; sys.argv = ['holdfast', '--help']; from holdfast.cli.main import main; main()"
        ),
        theirs=lambda _: _exit_code("-c", "import torch"),
        equal=lambda ours, theirs: ours == theirs == 0,
        settings={"target_s": 0.4},
        memory=False,
    ),
)
