"""Other machines on which process tasks run."""
