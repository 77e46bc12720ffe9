"""One pair of files, from files to file."""
