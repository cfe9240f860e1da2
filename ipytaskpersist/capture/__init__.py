"""Capture of all that belongs to a task: prints, displays, threads, child processes, figures."""
