"""Progress, tables, plots and trackers: everything that shows a run to people."""
