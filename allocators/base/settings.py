"""Tunable constants of an allocator: a module-level ``size``, ``number`` or ``choice``.

    MMAP_THRESHOLD = size(128 << 10, low=0, text="larger requests are mapped; 0: never")
    FIT = choice("first", "next", "best", "worst", text="free block to take")

In compiled code a setting is a plain integer constant; ``conf/allocator/NAME.yaml`` and the command
line set it by its lower-case name (``allocator.fit=best``), checked before anything runs.
A constant *derived* from a setting is computed inside a function, where the compiler folds it.
"""


class Setting(int):
    """Integer with a range (``low``, ``high``, inclusive), ``choices`` and a description."""

    low: int
    high: int
    choices: tuple[str, ...]
    text: str

    def __new__(
        cls, value: int, low: int, high: int, choices: tuple[str, ...] = (), text: str = ""
    ) -> "Setting":
        """Make a setting whose default is ``value``."""
        self = super().__new__(cls, value)
        self.low, self.high, self.choices, self.text = low, high, choices, text
        return self

    def parse(self, name: str, value: object) -> int:
        """Return the integer for ``value``, which is as parsed from YAML.

        Raises ValueError with the name and the allowed values.
        """
        if self.choices:
            spelled = (
                {True: "true", False: "false"}.get(value, value)
                if isinstance(value, bool)
                else value
            )
            if spelled not in self.choices:
                raise ValueError(f"{name}={value}: choose one of {', '.join(self.choices)}")
            return self.choices.index(spelled)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name}={value}: expected a whole number")
        if not self.low <= value <= self.high:
            raise ValueError(f"{name}={value}: must be {self.low} to {self.high}")
        return value

    def format(self, value: int) -> object:
        """Return the integer ``value`` as a user writes it."""
        return self.choices[value] if self.choices else int(value)


def size(default: int, *, low: int = 1, high: int = 1 << 46, text: str = "") -> Setting:
    """Declare a setting that is a number of bytes."""
    return Setting(default, low, high, text=text)


def number(default: int, *, low: int = 0, high: int = 1 << 31, text: str = "") -> Setting:
    """Declare a setting that is a count."""
    return Setting(default, low, high, text=text)


def choice(*names: str, default: str = "", text: str = "") -> Setting:
    """Declare a setting that is one of several names; its integer is the index in ``names``."""
    return Setting(names.index(default) if default else 0, 0, len(names) - 1, names, text)
