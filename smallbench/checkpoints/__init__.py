"""Checkpoints and the record of a run, local and in a storage. No model or loop is known here."""
