"""The array libraries that the arithmetic runs on."""
