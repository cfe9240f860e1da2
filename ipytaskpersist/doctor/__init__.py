"""Checks of the store and the processes."""
