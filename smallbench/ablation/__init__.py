"""Ablations: variants × seeds under one FLOPs budget, and what can be concluded from them."""
