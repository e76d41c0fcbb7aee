"""The leaderboard: the paper's rows and local results as one table. No torch in this package."""
