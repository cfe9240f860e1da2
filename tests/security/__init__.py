"""Attacks: by another user of the machine, by a stranger's file, by what a task prints."""
