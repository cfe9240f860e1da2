"""Send notifications when tasks end."""
