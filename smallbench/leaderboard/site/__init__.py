"""The leaderboard as a folder of static pages: no server, no network, and no need of JavaScript."""
