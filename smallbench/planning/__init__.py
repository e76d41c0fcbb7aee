"""Plans of a training run: memory, the way to train, time, energy and money, without a GPU."""
