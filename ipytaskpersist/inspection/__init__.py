"""What a running task does now: the stacks of its threads, coroutines and processes."""
