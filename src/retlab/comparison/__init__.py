"""Evaluated runs side by side: a table for the terminal, CSV, Markdown, plots, and one HTML page."""
