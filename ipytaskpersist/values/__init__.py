"""Conversion of values to bytes and back."""
