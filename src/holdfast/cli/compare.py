"""`holdfast compare`: two runs, example by example."""

from __future__ import annotations

import click


@click.command("compare")
@click.argument("run_a")
@click.argument("run_b")
@click.option("--format", "form", type=click.Choice(("text", "json", "html")), default="text", show_default=True)
@click.option("--out", help="File to write instead of standard output.")
def command(run_a: str, run_b: str, form: str, out: str | None) -> int:
    """Differences of RUN_B from RUN_A on the examples both looked at: paired intervals, McNemar, what changed."""
    from holdfast.report.compare import compare, render_comparison

    text = render_comparison(compare(run_a, run_b), form)
    if out is None:
        click.echo(text)
    else:
        from holdfast.store.files import Folder

        path = out.rpartition("/")
        Folder(path[0] or ".").write(path[2], text.encode())
        click.echo(out)
    return 0
