"""The RayJob in configs/kuberay.yml, which no test can run, against facts about KubeRay's published schema."""

import re
import shlex
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from sweep.run import _options
from tests.conftest import REPOSITORY

MANIFEST = REPOSITORY / "configs" / "kuberay.yml"


def of(required: str = "", **fields: Any) -> dict[str, Any]:
    """A mapping with these fields and no others."""
    return {"type": "object", "properties": fields, "additionalProperties": False, "required": required.split()}


def some(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}

# Those fields that such a manifest needs, with the types and requirements that they have in version v1 of the CRD
# (ray-operator/config/crd/bases/ray.io_rayjobs.yaml in ray-project/kuberay, 19 August 2026), which has 25,400 lines.
POD = of(
    "spec",
    spec=of(
        "containers",
        containers=some(
            of(
                "name",
                name=TEXT,
                image=TEXT,
                resources=of(requests=TEXTS, limits=TEXTS),
                volumeMounts=some(of("name mountPath", name=TEXT, mountPath=TEXT)),
            )
        ),
        volumes=some(of("name", name=TEXT, persistentVolumeClaim=of("claimName", claimName=TEXT))),
    ),
)
GROUP = {"rayStartParams": TEXTS, "template": POD}
RAY_JOB = of(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=of("name", name=TEXT),
    spec=of(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=of(
            "headGroupSpec",
            rayVersion=TEXT,
            authOptions=of(mode={"enum": ["disabled", "token"]}),
            headGroupSpec=of("template", **GROUP),
            workerGroupSpecs=some(
                of(
                    "groupName minReplicas maxReplicas template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    **GROUP,
                )
            ),
        ),
    ),
)


@pytest.fixture
def manifest() -> Any:
    return YAML(typ="safe").load(MANIFEST)


def test_the_manifest_has_the_fields_that_the_operator_knows(manifest: Any) -> None:
    jsonschema.validate(manifest, RAY_JOB)


@pytest.mark.parametrize("wrong", [{"backOffLimit": 3}, {"backoffLimit": "3"}, {"entrypoint": None}])
def test_a_field_that_the_operator_does_not_know_is_found(manifest: Any, wrong: dict[str, Any]) -> None:
    manifest["spec"] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, RAY_JOB)


def test_a_repetition_of_its_command_goes_on_and_all_nodes_share_its_output(manifest: Any) -> None:
    spec = manifest["spec"]
    assert spec["backoffLimit"] > 0
    python, m, module, *arguments = shlex.split(spec["entrypoint"])
    assert (python, m, module) == ("python", "-m", "sweep.run")
    options = _options(arguments)
    assert (options.address, options.resume, bool(options.name)) == ("auto", True, True)
    cluster = spec["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
        mounts = [mount for container in pod["containers"] for mount in container["volumeMounts"]]
        assert any(options.output_dir.is_relative_to(one["mountPath"]) and one["name"] in volumes for one in mounts)


def test_it_says_first_that_it_was_not_run() -> None:
    assert re.match(r"#.*NOT RUN HERE", MANIFEST.read_text())
