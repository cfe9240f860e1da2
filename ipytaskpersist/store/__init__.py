"""The store: one SQLite file per user, and the only channel between processes.

Only this package speaks SQL. It accepts and returns the frozen records of `base.records`.
"""
