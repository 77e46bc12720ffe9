"""Which image belongs to which text."""
