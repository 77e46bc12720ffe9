"""Attention weights as files and pictures."""
