"""From a run's checkpoint to a directory that Hugging Face's classes load with no code of ours."""
