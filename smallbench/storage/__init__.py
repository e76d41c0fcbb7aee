"""Where checkpoints, corpora and exports travel to: one small protocol, a directory or S3."""
