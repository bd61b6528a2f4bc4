"""How a run is shown: pages, Markdown, JSON, model cards, and two runs compared, all made from run folders alone."""

from holdfast.report.render import render, write_report

__all__ = ["render", "write_report"]
