"""Analysing and running the source of cells."""
