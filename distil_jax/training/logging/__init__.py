"""Run folders, metrics, tables, plots and progress."""
