"""The leaderboard as a folder of static pages, which need no server and no network."""

REPOSITORY_URL: str | None = None
"""Where pull requests go: an https address. The site and its page for submitters link to it."""
