"""What runs have measured, as one HTML page, or as event files that TensorBoard reads."""
