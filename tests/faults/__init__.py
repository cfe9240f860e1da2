"""Attacks on running kernels, supervisors and command lines, and what must hold after each."""
