"""The report of runs: one HTML page, and its figures as PNG and SVG."""

from g2rpo_cli.reporting.groups import Group, group_runs
from g2rpo_cli.reporting.page import build_page
from g2rpo_cli.reporting.plots import draw_report
from g2rpo_cli.reporting.reading import Run, read_runs

__all__ = ["Group", "Run", "build_page", "draw_report", "group_runs", "read_runs"]
