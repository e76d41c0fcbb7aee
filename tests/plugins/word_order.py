"""A task of one's own: were two neighbouring words of the sentence swapped?

Its files lie where GLUE's do, in the folder WordOrder/ below --glue: train.tsv and dev.tsv with
the columns sentence and label (0: as it was written, 1: swapped).
"""

from smallbench.glue.tasks import Split, Task

WORD_ORDER = Task(
    name="word-order",
    title="WordOrder",
    column="Order",
    hub_texts=("sentence",),
    tsv_texts=("sentence",),
    tsv_label="label",
    label_names=("written", "swapped"),
    ranking_metric="accuracy",
    further_metrics=("matthews",),
    splits=(
        Split("train", "train.tsv", "train", 2_000),
        Split("dev", "dev.tsv", "validation", 500),
    ),
    default_epochs=3,
    default_num_seeds=5,
)
