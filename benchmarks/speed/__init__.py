"""How fast the bench itself is: replays against the machine's own malloc, streams of any length.

Imports replay/ and what is below it; real/ times the machine's libraries by the same loop (libc).
"""

#: Lognormal sizes of mean ≈ 140 bytes, about 25,000 live objects.
CHURN = {"name": "churn", "live": 25_000, "touch": "first", "seed": 1}
