"""One module a fusion method."""
