"""Speed of the benchmark itself: replays against this machine's malloc, streams of any length.

Imports replay/ and the layers below it; real/ times this machine's libraries with the same loop
(speed.libc).
"""

#: Lognormal sizes of mean ≈ 140 bytes, about 25,000 live objects.
CHURN = {"name": "churn", "live": 25_000, "touch": "first", "seed": 1}
