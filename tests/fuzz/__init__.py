"""Damaged files by the million: each a ``ValueError`` or the content that was there, in little time and memory.

    make fuzz                       # a million from seed 0, about half an hour of one core
    make fuzz SEED=1 COUNT=10000

A case is known by seed and number alone, so that a run that was interrupted goes on where it was, and a failure is found again by
``--only NUMBER``.
"""
