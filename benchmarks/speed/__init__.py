"""The benchmark measures itself: its speed against this machine's malloc, and its verdicts.

marathon.py       a stream of events of any length
referee.py        how often a comparison of times is right

Imports run/ and the layers below it; nothing imports it.
"""

#: Lognormal sizes of mean ≈ 140 bytes, about 25,000 live objects.
CHURN = {"name": "churn", "live": 25_000, "touch": "first", "seed": 1}
