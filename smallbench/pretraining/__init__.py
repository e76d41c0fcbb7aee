"""A pretraining run, from a prepared corpus and a configuration to a run directory."""
