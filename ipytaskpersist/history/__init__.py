"""The history of tasks: archives, limits, search, export and import."""
