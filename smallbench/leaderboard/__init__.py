"""The leaderboard: entries read, checked, scored, ranked and shown. No torch in this package."""

MAX_TRAIN_FLOPS = {"small": 6e18, "tiny": 2e14}
"""The limits of the tracks that have one; here, so that `enter --help` needs no numpy."""
