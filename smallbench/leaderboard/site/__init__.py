"""The leaderboard as a folder of static pages: no server, no network, and no need of JavaScript."""

REPOSITORY_URL: str | None = None
"""Where pull requests go: an https address. The site and its page for submitters link to it."""
