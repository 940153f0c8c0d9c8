"""How much a network loses when some of its weights change."""
