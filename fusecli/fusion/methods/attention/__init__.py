"""Cross-attention, in the cheapest order of products."""
