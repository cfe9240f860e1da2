"""A task's output on its way to disk, and back."""
