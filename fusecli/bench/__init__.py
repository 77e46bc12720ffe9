"""Measurements on this machine, against the plain PyTorch module."""
