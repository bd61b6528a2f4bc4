"""`holdfast verify`: decide a VNN-LIB property of an ONNX network.

Exit codes: 0 the property holds (`unsat`), 3 it is violated (`sat`), 4 not decided (`timeout`, `unknown`), 2 a mistake
in what was asked.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

EXIT = {"unsat": 0, "sat": 3, "timeout": 4, "unknown": 4}


@click.command("verify", context_settings={"show_default": True})
@click.argument("network", type=click.Path(path_type=Path))
@click.argument("specification", metavar="PROPERTY", type=click.Path(path_type=Path))
@click.option("--budget", type=float, default=60.0, help="Seconds after which the answer is what is known by then.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the verdict and counterexample to this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: verdict, lower, counterexample, times.")
@click.option("--seed", type=int, default=0, help="Of the random starts of the search for counterexamples.")
@click.option("--threads", type=int, help="Threads of one computation; small networks are fastest with 1.")
def command(
    network: Path,
    specification: Path,
    budget: float,
    out: Path | None,
    as_json: bool,
    seed: int,
    threads: int | None,
) -> int:
    """Decide whether NETWORK (.onnx) satisfies PROPERTY (.vnnlib); either may be gzipped.

    Prints the competition's words: `unsat` when no input of the property is unsafe, proven in exact arithmetic of the
    stored weights; `sat` with a counterexample that ONNX Runtime confirms; `timeout` or `unknown` otherwise.

    \b
    Exit codes: 0 unsat, 3 sat, 4 timeout or unknown, 2 a mistake in what was asked.
    """
    import torch

    from holdfast.core.errors import InputError
    from holdfast.inputs.bounds.verify import verify
    from holdfast.inputs.bounds.vnnlib import Property

    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads takes a positive number, got {threads}")
        torch.set_num_threads(threads)
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    asked = Property.from_vnnlib(specification)
    model, session = _network(network)
    with _watching() as watch:
        verdict = verify(
            model,
            asked,
            budget_s=budget,
            generator=torch.Generator().manual_seed(seed),
            deployed=session,
            observer=watch,
        )
    word = competition_word(verdict)
    text = word + "\n" + (counterexample_text(verdict) if word == "sat" else "")
    click.echo(json.dumps(_record(verdict, word)) if as_json else text, nl=as_json)
    if out is not None:
        out.write_text(text)
    return EXIT[word]


def _network(path: Path) -> tuple[Any, Any]:
    """The network as a torch module and as an ONNX Runtime session.  Raises InputError when the two differ."""
    from holdfast.core.errors import InputError
    from holdfast.subject.models.onnx_session import disagreement, session_model
    from holdfast.subject.onnx_graph import load_onnx

    model = load_onnx(path)
    session = session_model(path, path.name).module
    difference = disagreement(model, path)
    if difference is not None:
        raise InputError(f"{path}: the network cannot be verified as it was converted, {difference}")
    return model, session


def competition_word(verdict: Any) -> str:
    """`unsat`, `sat`, `timeout` or `unknown`."""
    if verdict.status == "unknown":
        return "timeout" if verdict.timed_out else "unknown"
    return "unsat" if verdict.status == "verified" else "sat"


def counterexample_text(verdict: Any) -> str:
    """Inputs and outputs in the competition's form: one (X_i value) or (Y_j value) a line, in one pair of brackets."""
    named = [
        f"({letter}_{place} {value!r})"
        for letter, values in (("X", verdict.counterexample), ("Y", verdict.output))
        for place, value in enumerate(values.flatten().tolist())
    ]
    return "(" + "\n".join(named) + ")\n"


def _record(verdict: Any, word: str) -> dict[str, Any]:
    point, output = verdict.counterexample, verdict.output
    return {
        "verdict": word,
        "lower": verdict.lower if abs(verdict.lower) != float("inf") else None,
        "counterexample": None if point is None else point.flatten().tolist(),
        "output": None if output is None else output.flatten().tolist(),
        "subproblems": verdict.subproblems,
        "seconds": round(verdict.seconds, 3),
    }


def _watching() -> AbstractContextManager[Any]:
    """An observer that keeps one line on a terminal's stderr up to date; none where nobody is looking."""
    from rich.console import Console

    console = Console(stderr=True)
    return _Line(console) if console.is_terminal else nullcontext(None)


class _Line(AbstractContextManager["_Line"]):
    def __init__(self, console: Any) -> None:
        self._status = console.status("looking for a counterexample")

    def __enter__(self) -> _Line:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, progress: Any) -> None:
        self._status.update(
            f"{progress.seconds:.0f} s · {progress.subproblems} subproblems, {progress.open} open · "
            f"proven margin {progress.lower:.4g}, smallest seen {progress.upper:.4g}"
        )
