"""From batches to checkpoints: optimizer, schedule, precision, engine, the one training loop."""
