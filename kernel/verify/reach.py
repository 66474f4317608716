"""Branches of the model that no program can reach on a host, and why: the one table of them."""

import re

from kernel.branches import Branch

#: (module, function, pattern of the text, why); each a regular expression that must match wholly.
_OUT_OF_REACH: tuple[tuple[str, str, str, str], ...] = ()


def out_of_reach(branches: list[Branch]) -> dict[int, str]:
    """Numbers of the branches that are out of reach, with the reason."""
    return {
        b.number: why
        for b in branches
        for module, function, text, why in _OUT_OF_REACH
        if re.fullmatch(module, b.module)
        and re.fullmatch(function, b.function)
        and re.fullmatch(text, b.text)
    }
