"""Views of a run: the metrics file, which is the truth, and what people look at meanwhile."""
