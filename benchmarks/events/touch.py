"""The use that a program makes of a newly allocated block: the setting ``workload.touch``."""

#: The program does nothing, writes the first word, writes all bytes, reads all bytes.
TOUCH_NOTHING, TOUCH_FIRST, TOUCH_ALL, TOUCH_ALL_READ = range(4)

TOUCH_NAMES = ("nothing", "first", "all", "read")
