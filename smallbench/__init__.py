"""Small-Bench NLP: pretrain small language encoders on one GPU, measure them on GLUE, compare them.

Data flows one way through the packages: `data` (raw text to token shards) → `models` and
`objectives` (batch to loss) → `train` (loss to checkpoint) → `export` (checkpoint to Hugging Face
directory) → `glue` (directory to scores) → `leaderboard` (scores to table).
"""

__version__ = "0.1.0"
