"""The leaderboard: entries read, checked, scored, ranked and shown. No torch in this package."""
