"""The paper's leaderboard as data: rows of tier *reported*, with what is known about them.

Source: Kanakarajan, Kundumani, Sankarasubbu 2021, *Small-Bench NLP*, arXiv 2109.10847: dev scores
as its leaderboard prints them. Nothing here can be recomputed: no predictions were published.
"""

from __future__ import annotations

from dataclasses import dataclass

from smallbench.leaderboard.entry import SCHEMA_VERSION, SIZE_NAMES, Entry, Links, Model, Reported

SOURCE = "Small-Bench NLP, arXiv 2109.10847: the leaderboard's dev scores"
AUTHORS = ("Kamal Raj Kanakarajan", "Bhuvana Kundumani", "Malaikannan Sankarasubbu")
PAPER = "https://arxiv.org/abs/2109.10847"
PUBLISHED = "2021-09-22"
BEST_DEV = "Best dev score over the authors' trials, whose number is not given."
UPSTREAM_ORDER = "The published leaderboard ranks RoBERTa above BERT, against its own averages."


@dataclass(frozen=True)
class ReportedRow:
    """One published row; `scores` are × 100, in the order and units of the paper's table."""

    name: str
    architecture: str
    objective: str
    params_millions: float
    scores: dict[str, float]
    """Task name to cell; empty for a reference of which only AVG is given."""
    average: float
    notes: tuple[str, ...]


def _cells(*values: float) -> dict[str, float]:
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    return dict(zip(tasks, values, strict=True))


# Parameters: the paper's names of the first two rows and its model descriptions.
REPORTED: tuple[ReportedRow, ...] = (
    ReportedRow(
        name="ELECTRA-DeBERTa",
        architecture="deberta",
        objective="replaced_token",
        params_millions=15.1,
        scores=_cells(57.50, 90.40, 88.22, 86.74, 90.44, 81.78, 88.10, 69.09),
        average=81.53,
        notes=(
            BEST_DEV,
            "MRPC 88.22 and RTE 69.09 are not k/n for any k on those dev sets: F1, a mean of "
            "metrics or a mean of runs.",
        ),
    ),
    ReportedRow(
        name="ELECTRA",
        architecture="electra",
        objective="replaced_token",
        params_millions=13.5,
        scores=_cells(56.8, 88.30, 87.40, 86.80, 88.30, 78.90, 87.90, 68.50),
        average=80.36,
        notes=(
            "Equal to the median over many seeds that google-research/electra publishes for "
            "ELECTRA-Small-OWT, while the other rows are best dev scores: best of n alone is worth "
            "about one point. As a median, its MRPC 87.40 need not be k/n, and is not.",
        ),
    ),
    ReportedRow(
        name="DeBERTa",
        architecture="deberta",
        objective="masked_lm",
        params_millions=15.0,
        scores=_cells(47.82, 90.36, 88.49, 84.62, 88.31, 78.11, 86.67, 67.87),
        average=79.03,
        notes=(
            BEST_DEV,
            "MRPC 88.49 is not k/n for any k on that dev set: F1, a mean of metrics or a mean of "
            "runs.",
        ),
    ),
    ReportedRow(
        name="BERT",
        architecture="bert",
        objective="masked_lm",
        params_millions=13.5,
        scores=_cells(45.00, 90.14, 86.27, 84.46, 88.59, 79.58, 87.22, 65.70),
        average=78.37,
        notes=(BEST_DEV, UPSTREAM_ORDER),
    ),
    ReportedRow(
        name="RoBERTa",
        architecture="roberta",
        objective="masked_lm",
        params_millions=22.4,
        scores=_cells(44.72, 89.45, 85.30, 84.02, 89.84, 79.51, 87.39, 66.42),
        average=78.33,
        notes=(BEST_DEV, UPSTREAM_ORDER),
    ),
    ReportedRow(
        name="BERT-Base",
        architecture="bert",
        objective="masked_lm",
        params_millions=110.0,
        scores={},
        average=82.20,
        notes=("Reference from outside the budget; only its AVG is given.",),
    ),
)


def reported_entry(row: ReportedRow) -> Entry:
    """A row as an entry of tier *reported*; `submissions/` holds these as files."""
    return Entry(
        schema_version=SCHEMA_VERSION,
        slug=f"reported-{row.name.lower()}",
        name=row.name,
        date=PUBLISHED,
        authors=AUTHORS,
        contact=None,
        license=None,
        links=Links(paper=PAPER),
        tier="reported",
        notes=row.notes,
        model=Model(
            architecture=row.architecture,
            objective=row.objective,
            num_parameters=round(row.params_millions * 1e6),
            from_scratch=True,
            distilled_from=None,
            num_parameters_without_embeddings=None,
            **dict.fromkeys(SIZE_NAMES),
        ),
        reported=Reported(SOURCE, row.scores, row.average),
    )
