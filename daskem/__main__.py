"""``python -m daskem``: the command line without its script on the path."""

from daskem.cli import main

if __name__ == "__main__":
    main(prog_name="daskem")
