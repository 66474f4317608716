"""What commands have in common: exit codes, whole numbers, a mistake in one line."""

import argparse

EXIT_FAILED, EXIT_USAGE, EXIT_SKIP, EXIT_INTERRUPTED = 1, 2, 77, 130


def positive(text: str) -> int:
    """A whole number above 0, with or without underscores."""
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text!r}")
    return number


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, which begins with the command's module."""

    def error(self, message: str) -> None:
        """End with exit code 2."""
        self.exit(EXIT_USAGE, f"{self.prog.split()[-1]}: {message}\n")
