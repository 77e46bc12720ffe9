"""`python -m fusecli`."""

from fusecli.cli.main import run

if __name__ == "__main__":
    run()
