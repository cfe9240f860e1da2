"""State that Python, IPython and libraries keep for the whole process, separate for each task."""
