"""`python -m moemodel`: the command line."""

from moemodel.cli import main

if __name__ == "__main__":
    main(prog_name="moemodel")
