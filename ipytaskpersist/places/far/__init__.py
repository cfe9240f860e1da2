"""The modules of which the text of the agent is made: each imports from those before it."""
