"""GLUE: task table, readers, features, fine-tuning, metrics and stored results."""
