"""One module a file format: how it is read and how it is written."""
