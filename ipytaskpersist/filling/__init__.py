"""A task's outputs in the cell that launched it, as if the page had stayed open."""
