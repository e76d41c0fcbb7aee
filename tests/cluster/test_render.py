"""`smallbench k8s render`: this run's values in the committed manifests, and nothing else."""

from __future__ import annotations

import shlex
import subprocess
import sys
from copy import deepcopy

import kubernetes_validate
import pytest
import yaml

from smallbench import plugins
from smallbench.cluster.manifests import built_manifests
from smallbench.errors import UsageError
from smallbench.jobs.cli import load, resolve
from smallbench.jobs.k8s import ACTIONS, documents_of, stages_of
from smallbench.recipes import RECIPES
from tests.cluster.job_controller import job_is_over
from tests.cluster.kustomize import IMAGE, STAGES, command_of, jobs
from tests.cluster.rendering import GIVEN, LINES, args_of, job_of, render, resolved, work
from tests.cluster.test_manifests import NEWEST, OLDEST, env, gib


@pytest.fixture(scope="module")
def rendered():
    return {stage: render(f"render {line} {GIVEN}") for stage, line in LINES.items()}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("stage", STAGES)
def test_the_strict_schemas_accept_what_is_rendered(rendered, stage, version):
    for document in rendered[stage]:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("stage", STAGES)
def test_the_stages_own_command_takes_its_arguments(rendered, stage, monkeypatch, tmp_path):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    *others, job = rendered[stage]
    for document in others:
        for name, text in document["data"].items():
            (tmp_path / name).write_text(text)
    words = [word.replace("/rows", str(tmp_path)) for word in command_of(job)]
    resolve(load(words[0]), words[1:], {})


def env_values(job):
    container = job["spec"]["template"]["spec"]["containers"][0]
    return {name: v["value"] for name, v in env(container).items() if "value" in v}


def test_the_committed_manifests_are_those_of_the_default_recipe():
    """Sizes and all: the planner's for bert-small on the paper's card, but for names."""
    committed = jobs(built_manifests())
    for stage in ("pretrain", "export", "glue"):
        expected = deepcopy(committed[stage])
        expected["metadata"]["name"] = f"{stage}-bert-small"
        container = expected["spec"]["template"]["spec"]["containers"][0]
        container["image"] = IMAGE
        (bucket,) = [v for v in container["env"] if v["name"] == "BUCKET"]
        bucket["value"] = "s3://lab/small"
        assert job_of(f"{stage} bert-small") == expected
    sweep = job_of("sweep bert-small --learning_rates=3e-4,5e-4,1e-3")
    ours, theirs = (
        job["spec"]["template"]["spec"]["containers"][0]["resources"]
        for job in (sweep, committed["sweep"])
    )
    assert ours == theirs
    assert sweep["spec"]["completions"] == committed["sweep"]["spec"]["completions"]
    flags = "--flags='--flops=1e17 --seeds=1,2,3'"
    ablation = job_of(f"ablate --recipes=bert-small,electra-small --run=ablate {flags}")
    expected = deepcopy(committed["ablate"])
    expected["metadata"]["name"] = "ablate-ablate"
    container = expected["spec"]["template"]["spec"]["containers"][0]
    container["image"] = IMAGE
    (bucket,) = [v for v in container["env"] if v["name"] == "BUCKET"]
    bucket["value"] = "s3://lab/small"
    expected["spec"]["activeDeadlineSeconds"] *= 6  # for one card
    assert ablation == expected


@pytest.mark.slow
def test_larger_recipes_get_larger_pods():
    small = job_of("pretrain bert-small")
    large = job_of("pretrain bert-large")
    memory, scratch, grace = zip(*(sizes(job) for job in (small, large)), strict=True)
    parameters = 335e6  # BERT large's
    assert memory[1] >= 4 * parameters * 4 / 2**30 + 16 > memory[0]
    assert scratch[1] - scratch[0] >= 4 * 12 * 300e6 / 2**30
    assert grace[1] >= 2 * 12 * parameters * (1 / 100e6 + 1 / 25e6) * 0.95
    assert grace[1] > grace[0] == 300
    assert env_values(large)["SMALLBENCH_GRACE_SECONDS"] == str(grace[1])


def sizes(job):
    pod = job["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    return (
        gib(limits["memory"]),
        gib(limits["ephemeral-storage"]),
        pod["terminationGracePeriodSeconds"],
    )


def test_the_hours_are_the_trainers_and_the_deadline_is_later():
    job = job_of("pretrain bert-small --hours=30")
    assert "--max_hours=30.0" in args_of(job)
    assert job["spec"]["activeDeadlineSeconds"] >= 2 * 30 * 3600


def deadline(line):
    return job_of(line)["spec"]["activeDeadlineSeconds"] / 3600


RATES = "--learning_rates=" + ",".join(f"{n}e-4" for n in range(1, 11))


@pytest.mark.parametrize(
    ("at_once", "rounds"), [("", 10), ("--pods_at_once=4", 3), ("--pods_at_once=10", 1)]
)
def test_a_sweeps_deadline_covers_its_rows_over_the_pods_at_once(at_once, rounds):
    """Without the number of cards: rows that wait for a single one."""
    line = f"sweep bert-small {RATES} {at_once}"
    for hours in (5, 30):
        assert deadline(f"{line} --hours={hours}") >= 24 + 2 * rounds * hours
    planned = deadline("pretrain bert-small") - 24
    assert deadline(line) - 24 >= rounds * planned / 2
    on_cpus = "sweep bert-tiny --learning_rates=1e-3,2e-3,3e-3 --gpu=none"
    assert deadline(on_cpus) == 3 * deadline("pretrain bert-tiny --gpu=none")


@pytest.mark.parametrize(
    ("line", "factor"),
    [
        ("glue --run=a --pods=1", 8),
        ("glue --run=a --pods=4", 2),
        ("glue --run=a --pods_at_once=3", 3),
        ("glue --run=a --pods=16", 1),
        ("prepare --pods=2", 4),
        ("prepare --corpus_gib=100", 5),
    ],
)
def test_fewer_pods_have_more_time(line, factor):
    assert deadline(line) == factor * deadline("prepare" if "prepare" in line else "glue --run=a")


@pytest.mark.slow
def test_an_ablations_deadline_covers_its_budget_and_leaves_time_for_glue():
    line = "ablate --recipes=bert-tiny,modern-tiny --flags=--flops="
    rounds, least = 6, 3 * 24  # on one card
    assert deadline(f"{line}1e13") == rounds * least
    assert deadline(f"{line}1e13 --pods_at_once=3") == 2 * least
    fastest = 1e19 / 125e12 / 3600  # at the card's peak
    assert deadline(f"{line}1e19") >= 24 + 2 * rounds * fastest


def test_a_deadline_that_is_given_counts():
    for line in (
        "ablate --recipes=bert-tiny,modern-tiny --gpu=none --flags=--flops=1e13",
        "prepare",
        "pretrain bert-small",
        f"sweep bert-small {RATES}",
        "glue --run=a",
    ):
        assert deadline(f"{line} --deadline_hours=100") == 100


@pytest.mark.parametrize(
    ("recipe", "component", "is_enough"),
    [
        ("bert-small", "spot-gke", True),
        ("bert-base", "spot-gke", False),
        ("bert-base", "spot-aks", False),
        ("bert-base", "spot-eks", True),
    ],
)
def test_a_grace_that_is_too_short_for_a_save_is_said(recipe, component, is_enough, capsys):
    job = job_of(f"pretrain {recipe} --components={component}")
    grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert env_values(job)["SMALLBENCH_GRACE_SECONDS"] == str(grace)
    said = capsys.readouterr().err
    assert said == "" if is_enough else f"but a pod gets {grace} s" in said


def test_a_chain_is_its_stages_with_what_each_of_them_takes():
    words = (
        f"render all bert-small {GIVEN} --pods=3 --hours=5 --run=mine --components=pvc "
        "--flags='prepare --vocab_size=300 glue --tasks=cola --seeds=1'"
    )
    options, config = resolved(words)
    stages = [documents_of(*each)[-1] for each in stages_of(options, config)]
    names = [job["metadata"]["name"] for job in stages]
    assert names == [
        "prepare-corpus", "pretrain-mine", "export-mine", "glue-mine", "leaderboard-mine"
    ]  # fmt: skip
    alone = {
        "prepare": "prepare --pods=3 --components=pvc --flags=--vocab_size=300",
        "pretrain": "pretrain bert-small --run=mine --hours=5 --components=pvc",
        "glue": "glue bert-small --run=mine --pods=3 --components=pvc "
        "--flags='--tasks=cola --seeds=1'",
    }
    for job in stages:
        stage = job["metadata"]["labels"]["app.kubernetes.io/component"]
        assert stage not in alone or job == job_of(alone[stage])
    options, config = resolved(f"{words} --first=glue")
    assert [options.stage for options, _ in stages_of(options, config)] == ["glue", "leaderboard"]


def test_a_run_is_named_by_what_it_learns():
    """The same command finds its run again, as does one that only changes the micro-batch."""
    names = [
        work(f"pretrain {line}").run
        for line in (
            "bert-small",
            "bert-small --train.micro_batch_size=32",
            "bert-small --optim.learning_rate=1e-3",
            "bert-small --optim.learning_rate=1e-3 --train.keep_last=3",
            "bert-small --optim.learning_rate=2e-3",
            "bert-1.5b --train.max_steps=10",
        )
    ]
    one, two, three, four, five, six = names
    assert one == two == "bert-small"
    assert three == four
    assert len({one, three, five, six}) == 4
    assert six.startswith("bert-1-5b-")
    later = job_of("glue bert-small --optim.learning_rate=1e-3")
    assert later["metadata"]["labels"]["app.kubernetes.io/instance"] == three
    assert later["metadata"]["name"] == f"glue-{three}"


@pytest.mark.parametrize("rows", ["bert-small", "--recipes=bert-small,electra-small"])
def test_a_sweep_is_named_by_what_it_learns(rows):
    """With more hours, or another micro-batch, its rows go on; with other rates they are others."""
    line = f"sweep {rows} --learning_rates=1e-3,5e-4"
    hours = work(f"{line} --hours=48")
    assert all(row["max_hours"] == 48 for row in hours.rows)
    assert work(line).run == work(f"{line} --hours=24").run == hours.run
    assert work(line).run != work(f"sweep {rows} --learning_rates=1e-3,6e-4").run
    if rows == "bert-small":
        assert work(f"{line} --train.micro_batch_size=32").run == hours.run
        assert work(f"{line} --train.max_steps=7").run != hours.run


def test_an_ablation_is_named_by_its_baseline_and_budget():
    """More seeds, variants and tasks join it; another budget or batch is another ablation."""

    def name(line, flags):
        return job_of(f"ablate --gpu=none --recipes={line} --flags='{flags}'")["metadata"]["name"]

    first = name("bert-tiny,modern-tiny", "--flops=2e13 --seeds=1,2")
    assert first.startswith("ablate-bert-tiny-")
    assert first == name("bert-tiny,modern-tiny,deberta-tiny", "--flops=2e13 --tasks=cola")
    others = [
        name("modern-tiny,bert-tiny", "--flops=2e13"),
        name("bert-tiny,modern-tiny", "--flops=3e13"),
        name("bert-tiny,modern-tiny", "--flops=2e13 --train.global_batch_size=64"),
    ]
    assert len({first, *others}) == 4


def test_the_file_of_a_variant_travels_with_the_ablation(tmp_path, monkeypatch):
    for known, empty in {"_FILES": {}, "_GIVEN": set()}.items():
        monkeypatch.setattr(plugins, known, empty)
    file = tmp_path / "my_idea.py"
    file.write_text(
        "from smallbench.config import override_all\n"
        "from smallbench.recipes.bert import bert_tiny\n\n\n"
        "def small():\n"
        '    return override_all(bert_tiny(), {"train.global_batch_size": 64})\n'
    )
    flags = "--gpu=none --flags=--flops=1e13"
    copies, job = render(f"render ablate --recipes=bert-tiny,{file}:small {flags} {GIVEN}")
    assert copies["data"] == {"my_idea.py": file.read_text()}
    assert "--variants=bert-tiny,my_idea.py:small" in args_of(job)
    assert "--plugin=/plugins/my_idea.py" in args_of(job)
    _, rows, _ = render(f"render sweep --recipes={file}:small --gpu=none {GIVEN}")
    assert yaml.safe_load(rows["data"]["0.yaml"])["recipe"] == "my_idea.py:small"


def test_changes_of_the_recipe_reach_the_trainer():
    words = args_of(
        job_of("pretrain bert-small --optim.learning_rate=1e-3 --train.milestones=5,10")
    )
    base = RECIPES["bert-small"]()
    assert words[1] == "bert-small"
    _, _, config = resolve(load("pretrain"), words[1:], {})
    assert config.optim.learning_rate == 1e-3
    assert config.train.milestones == (5, 10)
    assert config.model == base.model


def test_a_sweep_has_a_row_for_each_recipe_and_rate(rendered):
    rows, job = rendered["sweep"]
    read = [yaml.safe_load(text) for text in rows["data"].values()]
    assert [row["optim.learning_rate"] for row in read] == [1e-3, 5e-4]
    assert job["spec"]["completions"] == 2
    assert job["spec"]["parallelism"] == 1
    (volume,) = [v for v in job["spec"]["template"]["spec"]["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == rows["metadata"]["name"] == job["metadata"]["name"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    both = work("sweep --recipes=bert-small,electra-small --learning_rates=1e-3,2e-3").rows
    assert [(row["recipe"], row["optim.learning_rate"]) for row in both] == [
        (recipe, rate) for recipe in ("bert-small", "electra-small") for rate in (1e-3, 2e-3)
    ]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("sweep bert-small --learning_rates=1e-4,2e-4,3e-4,4e-4,5e-4", 5),
        ("glue --run=mine --pods=12 --gpu=none", 12),
        ("ablate --recipes=bert-tiny,modern-tiny --gpu=none --flags=--flops=1e13", 6),
    ],
)
def test_only_the_failure_of_all_parts_is_the_jobs(line, count):
    spec = job_of(line)["spec"]
    assert spec["completions"] == count
    assert not job_is_over(spec, count - 1)


@pytest.mark.parametrize("line", ["prepare", *(f"{s} --run=a" for s in STAGES[4:])])
def test_every_stage_has_the_grace_it_is_given(line):
    assert sizes(job_of(f"{line} --grace_seconds=25"))[2] == 25
    assert not [word for word in args_of(job_of(line)) if "grace" in word]


def test_who_prepares_a_larger_corpus_has_more_scratch():
    assert sizes(job_of("prepare")) == sizes(jobs(built_manifests())["prepare"])
    job = job_of("prepare --corpus_gib=500")
    assert sizes(job)[1] == 25 * sizes(job_of("prepare"))[1]
    assert {"name": "scratch", "emptyDir": {"sizeLimit": "2500Gi"}} in (
        job["spec"]["template"]["spec"]["volumes"]
    )


def test_a_pod_has_time_to_pull_a_larger_corpus():
    """Until the first heartbeat, for which the startup probe waits."""
    for size, hours in ((20, 1), (500, 5)):
        job = job_of(f"pretrain bert-tiny --gpu=none --corpus_gib={size}")
        probe = job["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
        assert hours <= probe["periodSeconds"] * probe["failureThreshold"] / 3600 < 3 * hours


def test_an_open_quote_is_reported_without_its_content():
    with pytest.raises(UsageError, match="quotation") as refused:
        render(f"render prepare {GIVEN} --flags='--vocab_size=\"5'")
    assert "vocab_size" not in str(refused.value)


@pytest.mark.parametrize("pods", [1, 12])
def test_no_corpus_without_one_of_its_shares(pods):
    assert job_is_over(job_of(f"prepare --pods={pods}")["spec"], 1)


def test_where_it_runs_is_the_flags(rendered):
    job = job_of(
        "pretrain bert-small --endpoint_url=https://s3.example --region=eu-west-1 "
        "--node_selector=nvidia.com/gpu.product=Tesla-T4,pool=a --namespace=team "
        "--grace_seconds=25 --cpus=4 --memory_gib=33"
    )
    assert job["metadata"]["namespace"] == "team"
    assert env_values(job)["AWS_ENDPOINT_URL_S3"] == "https://s3.example"
    assert env_values(job)["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert env_values(job)["BUCKET"] == "s3://lab/small"
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "kubernetes.io/arch": "amd64",
        "nvidia.com/gpu.product": "Tesla-T4",
        "pool": "a",
    }
    assert pod["terminationGracePeriodSeconds"] == 25
    for amounts in pod["containers"][0]["resources"].values():
        assert (amounts["cpu"], amounts["memory"]) == ("4", "33Gi")
    assert env_values(job)["SMALLBENCH_GRACE_SECONDS"] == "25"
    glue = rendered["glue"][-1]["spec"]
    assert glue["completions"] == glue["maxFailedIndexes"] == 4
    assert "--num_shards=4" in args_of(rendered["glue"][-1])
    limits = glue["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu" not in limits


@pytest.mark.parametrize(
    "line",
    [
        line
        for action in ("render", "submit")
        for line in ACTIONS[action].examples
        if "all" not in line.split()
    ],
)
def test_the_examples_of_the_help_render(line):
    words = [word for word in shlex.split(line)[3:] if not word.startswith(("--image", "--bucket"))]
    job = job_of(shlex.join(words))
    flags = [flag for word in words if word.startswith("--flags=") for flag in word[8:].split()]
    assert set(flags) <= set(args_of(job))


def test_a_tag_before_the_digest_is_no_password():
    image = IMAGE.replace("@", ":5000/a:1@")
    (job,) = render(f"render export --run=mine --image={image} --bucket=s3://lab")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == image


def test_a_row_of_the_longest_sweep_is_a_run():
    line = "sweep bert-small --learning_rates=1e-3,2e-3"
    longest = "a" * 36
    for sweep in (work(f"{line} --run={longest}"), work(f"{line} --train.max_steps=7")):
        assert work(f"export --run={sweep.run}-999").run == f"{sweep.run}-999"
    with pytest.raises(UsageError, match="at most 36"):
        work(f"{line} --run={longest}a")


def test_render_prints_what_kubectl_reads_without_torch_where_nothing_is_planned():
    """Through the console script, in a process that has no torch."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from smallbench.jobs.cli import main\n"
        f"sys.exit(main(['k8s', 'render', 'prepare', *{GIVEN.split()!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (job,) = yaml.safe_load_all(done.stdout)
    assert job["metadata"]["name"] == "prepare-corpus"
