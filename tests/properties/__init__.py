"""Properties that must hold for whatever is stored, printed or typed."""
