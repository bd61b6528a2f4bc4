"""`holdfast audit`: the main job."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from holdfast.core.errors import InputError

DEFAULT_PRECISION = 0.01


@click.command("audit", context_settings={"show_default": True})
@click.argument("model", required=False)
@click.option("--data", help="Test data: .npz, .csv/.parquet:LABEL, IDX prefix, image folder.")
@click.option("--train", help="Training data, in any of the same forms (for labels, leakage, detection).")
@click.option("--other", help="Data that does not belong, for the detection probe.")
@click.option("--weights", help="safetensors or state dict for a module:factory MODEL.")
@click.option("--probes", help="Comma-separated names; all when left out.")
@click.option(
    "--threat", help="What may be perturbed: linf:8/255, l2:0.5, l1:12, ...; chosen by the kind of data when left out."
)
@click.option("--minutes", type=float, help="Stop after this long, with a valid report.")
@click.option(
    "--precision",
    type=float,
    default=DEFAULT_PRECISION,
    help="Stop a probe when its headline is known to +- this; 0: never.",
)
@click.option("--limit", type=int, help="Look at no more than this many test examples.")
@click.option("--level", type=float, default=0.95, help="Coverage of every interval.")
@click.option("--seed", type=int, default=0, help="Order of examples and all random choices.")
@click.option("--out", help="Run folder, a path or fsspec URL.  [default: runs/NAME-TIME]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option(
    "--fail-if", "fail_if", multiple=True, help="Gate such as 'adversarial.accuracy < 0.4'; exit 3 unless ruled out."
)
@click.option("--outputs", type=click.Choice(["logits", "probabilities", "labels"]), help="What MODEL returns.")
@click.option("--labels", help="Name of the label column or array.")
@click.option("--layout", type=click.Choice(["chw", "hwc"]), help="Order of image axes.")
@click.option("--input-range", "input_range", help="Valid input values LOW,HIGH in the units the model is fed.")
@click.option("--class-names", "class_names", help="Comma-separated, in order of class index.")
@click.option("--groups", "group_column", help="Column that names the subgroup of each example.")
@click.option("--device", default="cpu", help="Where the model runs.")
@click.option("--engine", default="serial", type=click.Choice(["serial", "threading", "loky", "ray", "dask", "spark"]))
@click.option("--workers", type=int, default=1, help="Shards examined at once by --engine.")
@click.option("--trust", is_flag=True, help="Allow files that can run code when read (pickles).")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> int:
    """Audit MODEL on --data, show the numbers while they form, and leave a report.

    MODEL is module:factory or file.py:factory (with --weights), a .pt2 archive, .onnx, .skops or a Hugging Face folder.
    Without MODEL the embedded example is audited: a small CNN on scikit-learn's digits.
    """
    if options["resume"] and options["model"] is None and options["out"]:
        options = _earlier_options(options, ctx)
    return run(options)


def _earlier_options(options: dict[str, Any], ctx: click.Context) -> dict[str, Any]:
    """`--resume --out RUN` alone takes every other option from the run's own manifest."""
    from holdfast.store.files import Folder
    from holdfast.store.manifest import MANIFEST, read_json

    folder = Folder(options["out"])
    if not folder.exists(MANIFEST):
        raise InputError(f"there is no run to resume in {options['out']} (no {MANIFEST})")
    earlier = read_json(folder, MANIFEST)["arguments"]
    given = {name for name in options if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE}
    return {name: options[name] if name in given else earlier.get(name, options[name]) for name in options}


def run(options: dict[str, Any]) -> int:
    """Load, audit, report, decide the gates; returns the exit code."""
    from holdfast.audit.gate import Condition
    from holdfast.audit.probes import chosen_names

    conditions = [Condition.parse(text) for text in options["fail_if"]]
    names = (
        None if options["probes"] is None else [name.strip() for name in options["probes"].split(",") if name.strip()]
    )
    names = chosen_names(names)
    settings = _settings(options)
    subject = _subject(options)
    out = options["out"] or _default_out(subject.name)
    result = _audit(subject, settings, names, out, options)
    return _tell(result, out, conditions)


def _settings(options: dict[str, Any]) -> Any:
    from holdfast.audit.probe import Settings
    from holdfast.threats import parse

    threat = None if options["threat"] is None else parse(options["threat"])
    return Settings(threat=threat, seed=options["seed"], level=options["level"], precision=options["precision"] or None)


def _subject(options: dict[str, Any]) -> Any:
    if options["model"] is None:
        unused = [name for name in ("data", "train", "other", "weights") if options[name]]
        if unused:
            raise InputError(
                f"--{unused[0]} was given without a MODEL; name the model first: holdfast audit MODEL --data DATA"
            )
        from holdfast.subject.embedded import embedded_subject

        return embedded_subject(seed=0)
    if options["data"] is None:
        raise InputError("an audit of your own model needs test data: holdfast audit MODEL --data DATA")
    from holdfast.subject.loading import load_subject

    return load_subject(
        options["model"],
        options["data"],
        train=options["train"],
        other=options["other"],
        weights=options["weights"],
        labels=options["labels"],
        layout=options["layout"],
        input_range=_range(options["input_range"]),
        outputs=options["outputs"],
        class_names=None if options["class_names"] is None else tuple(options["class_names"].split(",")),
        group_column=options["group_column"],
        device=options["device"],
        trust=options["trust"],
    )


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--input-range takes two numbers LOW,HIGH, got {text!r}") from error
    if not low < high:
        raise InputError(f"--input-range takes LOW < HIGH, got {low:g},{high:g}")
    return low, high


def _default_out(name: str) -> str:
    safe = "".join(character if character.isalnum() else "-" for character in name).strip("-").lower() or "model"
    return os.path.join("runs", f"{safe}-{datetime.now():%Y%m%d-%H%M%S}")


def _audit(subject: Any, settings: Any, names: list[str] | None, out: str, options: dict[str, Any]) -> Any:
    from rich.console import Console

    from holdfast.audit.engine import audit
    from holdfast.cli.display import Display

    console = Console(stderr=False)
    console.print(
        f"[bold]holdfast[/bold] audits {subject.name} on {subject.test.source} ({len(subject.test)} test examples)",
        highlight=False,
    )
    with Display(console) as display:
        return audit(
            subject,
            out=out,
            probes=names,
            settings=settings,
            minutes=options["minutes"],
            limit=options["limit"],
            resume=options["resume"],
            engine=options["engine"],
            workers=options["workers"],
            observer=display,
            arguments={**options, "fail_if": list(options["fail_if"]), "resume": False},
        )


def _tell(result: Any, out: str, conditions: list[Any]) -> int:
    from holdfast.audit.gate import decide
    from holdfast.report import write_report

    path = write_report(out, "html")
    for doubt in [*result.doubts, *(doubt for section in result.sections for doubt in section.doubts)]:
        click.echo(f"doubt: {doubt.sentence} {doubt.advice}".rstrip())
    if result.manifest["stopped_because"]:
        click.echo(f"stopped early: {result.manifest['stopped_because']}; what is reported is valid, --resume goes on")
    click.echo(f"report: {Path(path).resolve() if '://' not in str(path) else path}")
    for section in result.failed:
        click.echo(f"holdfast: {section.probe}: {section.answer}", err=True)
    verdicts = decide(conditions, result.findings)
    for verdict in verdicts:
        click.echo(f"{'gate passed' if verdict.passed else 'GATE FAILED'}: {verdict.sentence}", err=not verdict.passed)
    if any(not verdict.passed for verdict in verdicts):
        return 3
    return 1 if result.failed else 0
