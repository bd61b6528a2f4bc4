"""`holdfast report`: a run shown again."""

from __future__ import annotations

import click

FORMATS = ("html", "md", "json", "model-card")


@click.command("report")
@click.argument("run")
@click.option("--format", "form", type=click.Choice(FORMATS), default="html", show_default=True)
@click.option("--out", help="File to write; html defaults to RUN/report.html, the others to standard output.")
def command(run: str, form: str, out: str | None) -> int:
    """Show the run in folder RUN as a page, as text, as data, or as a model card."""
    from holdfast.report import render, write_report

    if out is None and form != "html":
        click.echo(render(run, form))
    else:
        click.echo(write_report(run, form, out))
    return 0
