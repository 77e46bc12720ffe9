"""Reading and writing of feature files."""
