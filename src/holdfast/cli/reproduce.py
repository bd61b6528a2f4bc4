"""`holdfast reproduce`: a claim, run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.core.errors import InputError

if TYPE_CHECKING:
    from holdfast.papers.reproduce import ResultRecord, SmokeRun


@click.command("reproduce")
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every paper of the catalogue.")
@click.option("--full/--smoke", default=False, help="Full scale (minutes, writes results/KEY.json) or smoke (seconds).")
def command(keys: tuple[str, ...], everything: bool, full: bool) -> int:
    """Re-run the headline claim of the papers KEYS and show what was measured.

    Exit code 0: every check ran, and none contradicts its committed result; 1: a claim that held does not any more, or
    a check crashed.  A claim that is known not to hold is shown, and is no failure.
    """
    from holdfast.papers.catalogue import catalogue, find

    if everything == bool(keys):
        raise InputError("name the papers to reproduce, or --all for every one: holdfast reproduce KEY...")
    chosen = [entry.paper.key for entry in catalogue()] if everything else [find(key).paper.key for key in keys]
    return _full(chosen) if full else _smoke(chosen)


def _full(keys: list[str]) -> int:
    from holdfast.papers.paper import Scale
    from holdfast.papers.reproduce import reproduce

    for key in keys:
        click.echo(f"{key}: running at full scale ...")
        _show_record(reproduce(key, Scale.FULL))
    return 0


def _show_record(record: ResultRecord) -> None:
    outcome = record.outcome
    verdict = "the claim holds" if outcome.holds else "THE CLAIM DOES NOT HOLD"
    click.echo(f"{record.key}: {verdict} ({record.seconds:.1f} s, {record.cpu_seconds:.1f} s of processors)")
    for criterion in outcome.criteria:
        click.echo(f"  {'pass' if criterion.passed else 'FAIL'}  {criterion.statement}")
        for name, number in criterion.numbers.items():
            click.echo(f"          {name} = {number if not isinstance(number, float) else f'{number:.4g}'}")
    if outcome.notes:
        click.echo(f"  {outcome.notes}")


def _smoke(keys: list[str]) -> int:
    from holdfast.papers.reproduce import exit_code, smoke_runs

    runs = []
    for run in smoke_runs(keys):
        runs.append(run)
        _show_smoke(run)
    click.echo(
        f"{sum(run.verdict == 'agrees' for run in runs)} of {len(runs)} smoke checks agree with what is committed"
    )
    return exit_code(runs)


def _show_smoke(run: SmokeRun) -> None:
    click.echo(f"{run.key:24} {run.seconds:6.1f} s  {run.verdict}")
    for statement in run.failed:
        known = "contradicts the committed result" if statement in run.contradicted else "known"
        click.echo(f"    FAIL ({known})  {statement}")
    if run.error:
        click.echo(run.error, err=True)
