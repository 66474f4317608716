"""How a program uses a fresh block: the setting ``workload.touch``."""

#: What the program does with a fresh block: nothing, write the first word, write all, read all.
TOUCH_NOTHING, TOUCH_FIRST, TOUCH_ALL, TOUCH_ALL_READ = range(4)

TOUCH_NAMES = ("nothing", "first", "all", "read")
