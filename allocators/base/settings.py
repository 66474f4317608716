"""Tunable constants of an allocator: a module-level name wrapped in one of these is a setting.

    MMAP_THRESHOLD = size(128 << 10, low=0, text="larger requests are mapped; 0: never")
    FIT = choice("first", "next", "best", "worst", text="which free block is taken")

In compiled code such a name is a plain integer constant; ``conf/allocator/NAME.yaml`` and the
command line set it by its lower-case name (``allocator.fit=best``), checked before anything runs.
A constant *derived* from a setting is computed inside a function, where the compiler folds it.
"""


class Setting(int):
    """An int that knows its range: ``low``, ``high`` (inclusive), ``choices`` and ``text``."""

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
        """Return ``value`` (as YAML gives it) as this setting's integer.

        Raises ValueError with the name and what is allowed.
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

    def spell(self, value: int) -> object:
        """Return the integer ``value`` as a user writes it."""
        return self.choices[value] if self.choices else int(value)


def size(default: int, *, low: int = 1, high: int = 1 << 46, text: str = "") -> Setting:
    """A number of bytes."""
    return Setting(default, low, high, text=text)


def number(default: int, *, low: int = 0, high: int = 1 << 31, text: str = "") -> Setting:
    """A count."""
    return Setting(default, low, high, text=text)


def choice(*names: str, default: str = "", text: str = "") -> Setting:
    """One of several names; its integer is the position in ``names``."""
    return Setting(names.index(default) if default else 0, 0, len(names) - 1, names, text)
