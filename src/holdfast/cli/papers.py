"""`holdfast papers`: the catalogue."""

from __future__ import annotations

import json

import click

STYLES = {"holds": "green", "fails": "red", "stale": "yellow", "unrun": "dim"}


@click.command("papers")
@click.argument("query", nargs=-1)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON array: key, group, title, builds, claim, status, numbers."
)
def command(query: tuple[str, ...], as_json: bool) -> int:
    """List the methods, best match for QUERY first, and whether each paper's claim held when it was last run."""
    from holdfast.papers.catalogue import catalogue, search

    entries = search(" ".join(query), catalogue())
    if as_json:
        click.echo(json.dumps([entry.to_dict() for entry in entries], indent=1, ensure_ascii=False))
        return 0
    if not entries:
        click.echo(f"nothing in the catalogue matches {' '.join(query)!r}; `holdfast papers` lists all of it")
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1))
    for name in ("key", "group", "status", "claim"):
        table.add_column(name, no_wrap=name != "claim")
    for entry in entries:
        paper = entry.paper
        told = Text.assemble((paper.title, "bold"), "\n", paper.claim, "\n", (", ".join(paper.builds), "dim"))
        table.add_row(paper.key, paper.group, Text(entry.status, style=STYLES[entry.status]), told)
    Console().print(table)
    return 0
