"""The command line. `main.py` is its edge, `app.py` the list of commands, then one file each."""
