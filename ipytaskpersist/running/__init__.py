"""Tasks that run in this process: finding the calling code's task, and cancelling it."""
