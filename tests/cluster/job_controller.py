"""The Job controller's documented rules about a pod that ended, as a function.

From https://kubernetes.io/docs/concepts/workloads/controllers/job/ ("Pod failure policy", "Backoff
limit per index"): a pod that succeeded completes its index. A failed pod is held against the rules
in their order; the first that matches decides, later ones are not looked at. An `onExitCodes` rule
matches a container that ended with a code other than 0 which is (`In`) or is not (`NotIn`) among
its values, in the container of that name or, without one, in any. An `onPodConditions` rule
matches a condition of that type and status. `Ignore`: another pod, counted nowhere. `FailIndex`:
the index is over, without more attempts. `FailJob`: the Job is over. `Count`, and no match: the
failure counts to `backoffLimitPerIndex`, or `backoffLimit`; past it the index, or the Job, is over.
More failed indexes than `maxFailedIndexes` end the Job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["done", "again", "counted", "index over", "job over"]


@dataclass(frozen=True)
class Ended:
    """How a pod ended."""

    code: int
    is_disrupted: bool = False
    container: str = "smallbench"


def action_of(spec: dict[str, Any], pod: Ended) -> str:
    """What the policy's first matching rule says; `Count` where none matches."""
    for rule in spec["podFailurePolicy"]["rules"]:
        if codes := rule.get("onExitCodes"):
            is_there = pod.code in codes["values"]
            is_meant = codes.get("containerName") in {None, pod.container}
            if pod.code != 0 and is_meant and is_there == (codes["operator"] == "In"):
                return str(rule["action"])
        for pattern in rule.get("onPodConditions", ()):
            if (pattern["type"], pattern["status"]) == ("DisruptionTarget", "True"):
                if pod.is_disrupted:
                    return str(rule["action"])
            else:
                raise NotImplementedError(pattern)
    return "Count"


def verdict(spec: dict[str, Any], pods: Sequence[Ended]) -> Verdict:
    """What becomes of an index, or of a Job of one pod, whose pods ended so in their order."""
    is_indexed = spec.get("completionMode") == "Indexed"
    limit = spec["backoffLimitPerIndex"] if is_indexed else spec["backoffLimit"]
    num_counted, over = 0, "index over" if is_indexed else "job over"
    result: Verdict = "again"
    for pod in pods:
        assert result in {"again", "counted"}, "no pod comes after the end"
        if pod.code == 0:
            result = "done"
            continue
        action = action_of(spec, pod)
        assert action != "FailIndex" or is_indexed, "the API server refuses it elsewhere"
        if action == "FailJob":
            result = "job over"
        elif action == "FailIndex":
            result = "index over"
        elif action == "Ignore":
            result = "again"
        else:
            num_counted += 1
            result = "counted" if num_counted <= limit else over  # type: ignore[assignment]
    return result


def job_is_over(spec: dict[str, Any], num_failed_indexes: int) -> bool:
    """Whether so many failed indexes end the Job at once."""
    return num_failed_indexes > spec.get("maxFailedIndexes", spec["completions"])
