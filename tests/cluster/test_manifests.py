"""The committed manifests: they build, the API accepts them, and each field is as it should be."""

from __future__ import annotations

import re

import kubernetes_validate
import pytest

from smallbench.cluster.config import COMPONENTS, SPOT
from smallbench.cluster.manifests import built_manifests
from smallbench.jobs.cli import load, resolve
from tests.cluster.conftest import ALL_COMPONENTS, ROOTS
from tests.cluster.kustomize import (
    INDEXED,
    ON_GPU,
    ROOT,
    STAGES,
    TRAINS,
    by_name,
    command_of,
    jobs,
    kustomize,
)

# The oldest in which all that is used is on without being asked for (podFailurePolicy 1.26,
# backoffLimitPerIndex and podReplacementPolicy 1.29; general 1.31, 1.33, 1.34), and the newest.
OLDEST, NEWEST = "1.29", "1.37"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", ROOTS)
def test_the_strict_schemas_accept_every_document(built, folder, version):
    assert built[folder]
    for document in built[folder]:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_newest_schemas_are_the_newest_there_are():
    assert kubernetes_validate.latest_version().startswith(NEWEST)


def test_the_schemas_refuse_a_misspelt_field(built):
    document = jobs(built["base"])["pretrain"]
    document = {**document, "spec": {**document["spec"], "podFailurePolice": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, OLDEST, strict=True)


# The default run has each component in one set at least.
SETS = [
    *(pytest.param((name,), marks=pytest.mark.slow) for name in ALL_COMPONENTS),
    *(
        ("gpu-v100", spot, "nvidia-runtime", "openshift", "pvc", "offline-wandb", "kueue")
        for spot in SPOT
    ),
    ("cpu", "spot-gke", "openshift", "pvc", "kueue"),
]


@pytest.mark.parametrize("components", SETS, ids="+".join)
def test_the_schemas_accept_what_components_make(components):
    documents = built_manifests(components)
    for document in documents:
        kubernetes_validate.validate(document, OLDEST, strict=True)
    for job in jobs(documents).values():
        env(job["spec"]["template"]["spec"]["containers"][0])  # no variable twice
    assert by_name(documents).keys() == by_name(kustomize("k8s/base")).keys()


def pod_of(components, stage="pretrain"):
    return jobs(built_manifests(components))[stage]["spec"]["template"]["spec"]


SPOT_NODES = {
    "spot-gke": (15, "cloud.google.com/gke-spot", "true"),
    "spot-aks": (25, "kubernetes.azure.com/scalesetpriority", "spot"),
    "spot-eks": (110, "eks.amazonaws.com/capacityType", "SPOT"),
    "spot-karpenter": (110, "karpenter.sh/capacity-type", "spot"),
}
"""What the provider gives a pod in seconds, and its label and taint."""


@pytest.mark.parametrize("component", SPOT)
def test_spot_pods_choose_spot_nodes_and_know_their_grace(component):
    seconds, key, value = SPOT_NODES[component]
    for stage in ("prepare", *ON_GPU):
        pod = pod_of([component], stage)
        assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64", key: value}
        taint = {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        assert taint in pod["tolerations"]
        assert pod["terminationGracePeriodSeconds"] == seconds
        told = env(pod["containers"][0]).get("SMALLBENCH_GRACE_SECONDS")
        assert told == ({"value": str(seconds)} if stage in TRAINS else None)


@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        ({"nvidia.com/gpu.product": "Tesla-V100-SXM2-16GB"}, True),
        ({"nvidia.com/gpu.product": "Tesla-V100-PCIE-16GB"}, True),
        ({"nvidia.com/gpu.product": "Tesla-V100-SXM2-32GB"}, False),
        ({"nvidia.com/gpu.product": "Tesla-T4"}, False),
        ({"cloud.google.com/gke-accelerator": "nvidia-tesla-v100"}, True),
        ({"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}, False),
        (
            {
                "karpenter.k8s.aws/instance-gpu-name": "v100",
                "karpenter.k8s.aws/instance-gpu-memory": "16384",
            },
            True,
        ),
        ({"karpenter.k8s.aws/instance-gpu-name": "v100"}, False),
        ({}, False),
    ],
)
def test_a_v100_of_16_gb_is_found_by_any_providers_label(labels, fits):
    affinity = pod_of(["gpu-v100"])["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert all(e["operator"] == "In" for term in terms for e in term["matchExpressions"])
    found = any(
        all(labels.get(e["key"]) in e["values"] for e in term["matchExpressions"]) for term in terms
    )
    assert found == fits


def test_openshift_chooses_the_user_and_pods_stay_restricted():
    security = pod_of(["openshift"])["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & security.keys()
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_a_gpu_may_need_its_runtime_class():
    for stage in STAGES:
        pod = pod_of(["nvidia-runtime"], stage)
        assert pod.get("runtimeClassName") == ("nvidia" if stage in ON_GPU else None)


# The table, row by row


def test_every_stage_is_there_once(built, folder):
    assert sorted(jobs(built[folder])) == sorted(STAGES)


def test_parts_fail_by_themselves(spec, stage):
    if stage in INDEXED:
        assert spec["completionMode"] == "Indexed"
        assert spec["backoffLimitPerIndex"] == 3
        assert 0 <= spec["maxFailedIndexes"] <= spec["completions"]
        assert (spec["maxFailedIndexes"] == spec["completions"]) == (stage != "prepare")
        assert "backoffLimit" not in spec
    else:
        assert "completions" not in spec
        assert spec["backoffLimit"] == 3


def test_all_shares_of_a_corpus_run_at_once(built, folder):
    """The first one waits for the others."""
    spec = jobs(built[folder])["prepare"]["spec"]
    assert spec["parallelism"] == spec["completions"]


def test_the_command_knows_how_many_parts_there_are(stage, spec, container):
    flags = [a for a in container["args"] if a.startswith("--num_shards=")]
    is_cut = stage in {"prepare", "ablate", "glue"}
    assert flags == ([f"--num_shards={spec['completions']}"] if is_cut else [])


def test_the_stages_own_command_takes_its_arguments(
    built, folder, job, stage, monkeypatch, tmp_path
):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    (tmp_path / "0.yaml").write_text(by_name(built[folder])["ConfigMap", "sweep"]["data"]["0.yaml"])
    words = [word.replace("/rows", str(tmp_path)) for word in command_of(job)]
    resolve(load(words[0]), words[1:], {})


def test_a_row_of_the_sweep_for_each_pod(built, folder):
    spec = jobs(built[folder])["sweep"]["spec"]
    rows = by_name(built[folder])["ConfigMap", "sweep"]
    assert sorted(rows["data"]) == [f"{index}.yaml" for index in range(spec["completions"])]


def test_no_pod_beside_its_predecessor(spec, pod):
    assert spec["podReplacementPolicy"] == "Failed"
    assert pod["restartPolicy"] == "Never"


def test_time_is_limited_and_traces_stay_a_week(spec):
    assert spec["activeDeadlineSeconds"] >= 3600
    assert spec["ttlSecondsAfterFinished"] == 7 * 24 * 3600


def test_the_trainer_is_told_its_grace(stage, pod, container, monkeypatch):
    told = env(container).get("SMALLBENCH_GRACE_SECONDS")
    if stage in TRAINS:
        assert pod["terminationGracePeriodSeconds"] >= 300
        assert told == {"value": str(pod["terminationGracePeriodSeconds"])}
        job, flags = "pretrain", ["bert-tiny", "--data=d", "--run_dir=r"]
        if stage == "ablate":
            job, flags = "ablate", ["bert-tiny", "modern-tiny", "--data=d", "--flops=1", "--out=o"]
        _, options, _ = resolve(load(job), flags, {"SMALLBENCH_GRACE_SECONDS": told["value"]})
        assert options.grace_seconds == pod["terminationGracePeriodSeconds"]
    else:
        assert pod["terminationGracePeriodSeconds"] >= 60
        assert told is None


def test_requests_are_limits_with_room_for_the_optimizer(folder, stage, container):
    requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
    assert requests == limits
    assert {"cpu", "memory", "ephemeral-storage"} <= set(limits)
    has_gpu = folder != "overlays/dev-cpu" and stage in ON_GPU
    assert limits.get("nvidia.com/gpu") == ("1" if has_gpu else None)
    if has_gpu:
        num_parameters = 13_547_456  # bert-small's
        assert int(limits["cpu"]) >= 8
        assert gib(limits["memory"]) >= 4 * num_parameters * 4 / 2**30 + 16


def gib(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()
    return int(number) / (1024 if unit == "Mi" else 1)


def test_threads_are_the_pods_own(container):
    assert env(container)["OMP_NUM_THREADS"] == {
        "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}
    }


def env(container):
    found = {v["name"]: {k: x for k, x in v.items() if k != "name"} for v in container["env"]}
    assert len(found) == len(container["env"]), "the last of two would win"
    return found


def test_nodes_with_a_gpu_let_it_in(built, folder, stage, pod):
    tolerated = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    has_gpu = folder != "overlays/dev-cpu" and stage in ON_GPU
    assert (tolerated in pod["tolerations"]) == has_gpu
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}, "the image's own"
    assert ("affinity" in pod) == (folder == "overlays/prod" and stage in ON_GPU)


def test_a_namespaces_proxy_reaches_every_pod(container):
    reference = {"name": "smallbench-env", "optional": True}
    assert container["envFrom"] == [{"configMapRef": reference}]


def test_what_pods_ask_for_passes_the_network_policy(built):
    """DNS, also OpenShift's, whose pods listen on 5353; stores inside a cluster; proxies."""
    egress = by_name(built["namespace"])["NetworkPolicy", "smallbench"]["spec"]["egress"]
    open_to_all = [rule["ports"] for rule in egress if "to" not in rule]
    allowed = {(port["protocol"], port["port"]) for ports in open_to_all for port in ports}
    assert {(protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353)} <= allowed
    assert {("TCP", port) for port in (443, 3128, 3900, 7480, 8080, 8333, 9000)} <= allowed
    assert ("TCP", 80) not in allowed


def test_a_registry_with_a_password_needs_only_its_secret(built):
    account = by_name(built["namespace"])["ServiceAccount", "smallbench"]
    assert account["imagePullSecrets"] == [{"name": "smallbench-registry"}]


def test_only_scratch_and_shared_memory_can_be_written(stage, pod, container):
    volumes = {v["name"]: v for v in pod["volumes"]}
    mounts = {m["name"]: m for m in container["volumeMounts"]}
    own = {"rows"} if stage == "sweep" else set()
    assert set(volumes) == set(mounts) == {"scratch", "shm"} | own
    shm = volumes["shm"]["emptyDir"]
    assert shm["medium"] == "Memory"
    assert gib(shm["sizeLimit"]) < gib(container["resources"]["limits"]["memory"])
    assert mounts["shm"]["mountPath"] == "/dev/shm"
    assert mounts["scratch"]["mountPath"] == "/scratch"
    limit = container["resources"]["limits"]["ephemeral-storage"]
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": limit}
    writable = {name for name, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"scratch", "shm"}


def test_pod_security_restricted(pod, container):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert not [v for v in pod["volumes"] if "hostPath" in v]
    assert not [p for p in container.get("ports", ()) if "hostPort" in p]


def test_the_namespace_enforces_it_and_its_account_has_no_token(built):
    objects = by_name(built["namespace"])
    labels = objects["Namespace", "smallbench"]["metadata"]["labels"]
    for mode in ("enforce", "warn", "audit"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
    account = objects["ServiceAccount", "smallbench"]
    assert account["automountServiceAccountToken"] is False
    for stage, job in jobs(built["base"]).items():
        assert job["spec"]["template"]["spec"]["serviceAccountName"] == "smallbench", stage
    policy = objects["NetworkPolicy", "smallbench"]["spec"]
    assert policy["ingress"] == []
    assert {"Ingress", "Egress"} == set(policy["policyTypes"])
    ((key, value),) = policy["podSelector"]["matchLabels"].items()
    for job in jobs(built["base"]).values():
        assert job["spec"]["template"]["metadata"]["labels"][key] == value


def test_a_pod_fetches_its_own_role_and_not_the_nodes(built):
    """That is at http://169.254.170.23, the node's at http://169.254.169.254."""
    egress = by_name(built["namespace"])["NetworkPolicy", "smallbench"]["spec"]["egress"]
    (rule,) = [r for r in egress if {"protocol": "TCP", "port": 80} in r["ports"]]
    assert rule["to"] == [{"ipBlock": {"cidr": "169.254.170.23/32"}}]
    assert len(rule["ports"]) == 1


def test_keys_come_from_secrets_that_may_be_missing(built, container):
    names = {d["metadata"]["name"]: d for d in built["examples"] if d["kind"] == "Secret"}
    secret = {n: v for n, v in env(container).items() if "secretKeyRef" in v.get("valueFrom", {})}
    assert set(secret) == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "WANDB_API_KEY",
        "HF_TOKEN",
    }
    for value in secret.values():
        reference = value["valueFrom"]["secretKeyRef"]
        assert reference["optional"] is True
        assert reference["key"] in names[reference["name"]]["stringData"], "the example has it"
    assert {v for d in names.values() for v in d["stringData"].values()} == {"REPLACE-ME"}


def test_an_attempt_is_known_by_its_pod(container):
    assert env(container)["POD_UID"] == {"valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}


def test_the_image_is_named_by_digest(container):
    assert re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", container["image"])


def test_a_hung_trainer_is_found_by_its_heartbeat(stage, container):
    if stage not in TRAINS:
        assert "livenessProbe" not in container
        assert "# No probe: " in (ROOT / "k8s" / "base" / f"{stage}.yaml").read_text()
        return
    assert container["livenessProbe"]["exec"]["command"] == ["healthy"]
    if stage == "ablate":  # a pod whose run only lacks GLUE never has a heartbeat
        assert "startupProbe" not in container
        return
    (run_dir,) = [a for a in container["args"] if a.startswith("--run_dir=")]
    place = run_dir.removeprefix("--run_dir=")
    for name in ("RUN", "JOB_COMPLETION_INDEX"):
        place = place.replace(f"$({name})", f"${name}")
    startup = container["startupProbe"]
    assert startup["exec"]["command"] == ["sh", "-c", f"test -e {place}/heartbeat.json"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600


def test_the_run_is_in_the_labels_of_the_job_and_its_pods(job, container):
    labels = job["metadata"]["labels"]
    assert (
        labels.items()
        <= {
            **job["spec"]["template"]["metadata"]["labels"],
            "kueue.x-k8s.io/queue-name": labels.get("kueue.x-k8s.io/queue-name"),
        }.items()
    )
    assert env(container)["RUN"] == {"value": labels["app.kubernetes.io/instance"]}


def test_overlays_start_nothing_by_themselves(built, folder, spec):
    """Each stage reads what the one before it wrote."""
    assert spec.get("suspend", False) == (folder != "base")


def test_every_manifest_says_why():
    for path in (ROOT / "k8s").rglob("*.yaml"):
        lines = path.read_text().splitlines()
        assert any(line.lstrip().startswith("#") for line in lines), path
        assert max(map(len, lines)) <= 100, path


def test_components_that_can_be_asked_for_are_there():
    assert {*COMPONENTS, "cpu", "kueue"} == set(ALL_COMPONENTS)


def test_kueue_starts_what_is_queued():
    for document in built_manifests(["kueue"]):
        if document["kind"] == "Job":
            assert document["spec"]["suspend"] is True
            assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "smallbench"
