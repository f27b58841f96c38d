"""deploy/kubernetes as it is rendered: valid, in agreement with itself, and with deploy/container.py and monitoring."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.container_machine import import_container
from support.manifests import FOLDERS, KUBERNETES, Invalid, Json, prometheus_rule, render, validate
from support.prometheus import MONITORING

ALL = ("monitoring", "autoscaling", "tls", "mutual-tls")
COMBINATIONS = [
    *[(folder, components) for folder in ("cpu", "gpu", "gpu-prebuilt") for components in ((), ("tls",), ALL)],
    ("cpu", ("kserve",)),
    ("gpu", ("kserve",)),
    ("cpu", (*ALL, "kserve")),
    ("gpu", (*ALL, "kserve")),
]
IMAGE = "registry.example.org/models:7"
PROGRAM = ["python3", "/opt/brats-ldm/container.py"]
Combined = Callable[[str, Sequence[str]], list[Json]]


@pytest.fixture(scope="session")
def combined(tmp_path_factory: pytest.TempPathFactory) -> Combined:
    """Renders an overlay with components, an image and a namespace, as a user's own folder would."""

    @cache
    def rendered(overlay: str, components: tuple[str, ...]) -> list[Json]:
        folder = tmp_path_factory.mktemp("own")
        image, tag = IMAGE.split(":")
        own = {
            "namespace": "slices",
            "resources": [os.path.relpath(KUBERNETES / overlay, folder.resolve())],
            "components": [os.path.relpath(KUBERNETES / "components" / name, folder.resolve()) for name in components],
            "images": [{"name": "brats-ldm-models", "newName": image, "newTag": tag}],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
        return render(folder)

    return lambda overlay, components: copy.deepcopy(rendered(overlay, tuple(components)))


@pytest.fixture(params=COMBINATIONS, ids=lambda param: "-".join([param[0], *param[1]]))
def documents(request: pytest.FixtureRequest, combined: Combined) -> list[Json]:
    return combined(*request.param)


@pytest.mark.parametrize("components", [("kserve", "tls"), ("mutual-tls",), ("mutual-tls", "tls")])
def test_components_in_an_order_that_would_drop_tls_do_not_render(
    combined: Combined, components: tuple[str, ...]
) -> None:
    with pytest.raises(Invalid, match=r"nothing selected by|is missing for replacement"):
        combined("cpu", components)


def of_kind(documents: list[Json], kind: str) -> Json:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def pod(documents: list[Json]) -> tuple[dict[str, str], Json]:
    """Labels and spec of the pods, which a Deployment or an InferenceService makes."""
    for document in documents:
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            return template["metadata"]["labels"], template["spec"]
    predictor = of_kind(documents, "InferenceService")["spec"]["predictor"]
    return predictor["labels"], predictor


def containers(spec: Json) -> list[Json]:
    return [*spec.get("initContainers", []), *spec["containers"]]


# --- schemas


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_renders_and_is_valid(folder: str) -> None:
    for document in render(KUBERNETES / folder):
        validate(document)


def test_no_folder_is_left_out() -> None:
    found = {path.parent for path in KUBERNETES.rglob("kustomization.yaml")} - {KUBERNETES / name for name in FOLDERS}
    used = {component for _, components in COMBINATIONS for component in components}
    assert found == {KUBERNETES / "components" / name for name in used}


def test_a_combination_is_valid_and_complete(documents: list[Json]) -> None:
    for document in documents:
        validate(document)
        assert document["metadata"]["namespace"] == "slices"
    _, spec = pod(documents)
    assert {container["image"] for container in containers(spec)} == {IMAGE}


BREAKS = {
    "Deployment": ["spec.template.spec.containers.0.livenessProbe", "spec.template.spec.containers.0.args"],
    "Service": ["spec.ports", "spec.ports.0.port"],
    "PodDisruptionBudget": ["spec.maxUnavailable", "spec.selector.matchLabels"],
    "NetworkPolicy": ["spec.podSelector", "spec.ingress.0.from"],
    "HorizontalPodAutoscaler": ["spec.behavior", "spec.maxReplicas"],
    "PodMonitor": ["spec.podMetricsEndpoints.0.interval", "spec.podMetricsEndpoints"],
    "PrometheusRule": ["spec.groups.0.rules.0.annotations", "spec.groups"],
    "InferenceService": [
        "spec.predictor.deploymentStrategy.rollingUpdate",
        "spec.predictor.containers.0.startupProbe.exec",
        "spec.predictor.volumes",
    ],
}


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind, places in BREAKS.items() for place in places])
def test_the_schemas_refuse_a_misspelt_field_and_a_wrong_type(combined: Combined, kind: str, place: str) -> None:
    *way, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    combination = (*ALL, "kserve") if kind == "InferenceService" else ALL
    sound = of_kind([*combined("gpu", combination), prometheus_rule()], kind)
    for change in (misspell, replace):
        broken = copy.deepcopy(sound)
        parent: Any = broken
        for key in way:
            parent = parent[key]
        change(parent, last)
        with pytest.raises(Invalid, match=kind):
            validate(broken)
    validate(sound)


def misspell(parent: Json, key: str) -> None:
    parent[key + "x"] = parent.pop(key)


def replace(parent: Json, key: str) -> None:
    parent[key] = True


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(Invalid, match="Deploymint"):
        validate({"apiVersion": "apps/v1", "kind": "Deploymint"})
    with pytest.raises(Invalid, match="no schema for InferenceGraph"):
        validate({"apiVersion": "serving.kserve.io/v1alpha1", "kind": "InferenceGraph"})


# --- in agreement with itself


def selectors(documents: list[Json]) -> Iterator[dict[str, str]]:
    for document in documents:
        spec = document["spec"]
        if document["kind"] == "Service":
            yield spec["selector"]
        elif document["kind"] == "NetworkPolicy":
            yield spec["podSelector"]["matchLabels"]
        elif document["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            yield spec["selector"]["matchLabels"]
    yield pod(documents)[1]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]


def test_all_selectors_are_for_the_pods(documents: list[Json]) -> None:
    labels, _ = pod(documents)
    found = list(selectors(documents))
    assert len(found) >= 4
    for selector in found:
        assert selector
        assert selector.items() <= labels.items()


def test_ports_by_name_exist_and_grpc_is_the_first(documents: list[Json]) -> None:
    _, spec = pod(documents)
    ports = {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
    assert list(ports.items()) == [("grpc", 8001), ("metrics", 8002)]
    policy, service = of_kind(documents, "NetworkPolicy")["spec"], of_kind(documents, "Service")["spec"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["grpc", "metrics"]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])
    assert all(rule["from"] for rule in policy["ingress"])
    assert [(port["port"], port["targetPort"]) for port in service["ports"]] == [(ports["grpc"], "grpc")]
    assert service["clusterIP"] == "None"
    for document in documents:
        if document["kind"] == "PodMonitor":
            assert [endpoint["port"] for endpoint in document["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_mounts_have_volumes_and_only_init_containers_write_plans(documents: list[Json]) -> None:
    _, spec = pod(documents)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    used = {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]}
    assert used == set(volumes)
    mounts = {mount["mountPath"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert all(mounts[path]["readOnly"] for path in ("/models", "/tls") if path in mounts)


def test_pods_keep_to_the_restricted_profile_of_pod_security(documents: list[Json]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    _, spec = pod(documents)
    security = spec["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 1000)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert {key for volume in spec["volumes"] for key in volume} <= {"name", "emptyDir", "secret"}
    for container in containers(spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_an_update_and_a_drained_node_lose_nothing(documents: list[Json]) -> None:
    for document in documents:
        if document["kind"] in ("Deployment", "InferenceService"):
            spec = document["spec"]
            strategy = spec["strategy"] if "strategy" in spec else spec["predictor"]["deploymentStrategy"]
            assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
            assert "replicas" not in spec, "apply would undo what an autoscaler has done"
    assert of_kind(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_gpu_is_for_plans_and_server(combined: Combined) -> None:
    for overlay, count in (("gpu", 1), ("gpu-prebuilt", 1), ("cpu", None)):
        _, spec = pod(combined(overlay, ()))
        limits = [container["resources"]["limits"] for container in containers(spec)]
        assert [limit.get("nvidia.com/gpu") for limit in limits] == [count] * len(limits)
        assert len(limits) == (2 if overlay == "gpu" else 1)


def test_kserve_has_the_pods_of_the_deployment(combined: Combined) -> None:
    for overlay in ("gpu", "cpu"):
        plain, served = combined(overlay, ALL), combined(overlay, (*ALL, "kserve"))
        assert not any(document["kind"] == "Deployment" for document in served)
        (labels, spec), (predictor_labels, predictor) = pod(plain), pod(served)
        spec["containers"][0]["name"] = "kserve-container"  # KServe's name for it
        assert {name: predictor[name] for name in spec} == spec
        assert set(predictor) - set(spec) == {"labels", "deploymentStrategy"}
        assert predictor_labels == labels
        name = of_kind(served, "InferenceService")["metadata"]["name"]
        assert name != of_kind(served, "Service")["metadata"]["name"], "KServe may make a Service of its name"
        assert of_kind(served, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == f"{name}-predictor"
        deployment = of_kind(plain, "Deployment")["metadata"]["name"]
        assert of_kind(plain, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == deployment


# --- in agreement with deploy/container.py


def test_the_container_understands_its_commands(documents: list[Json]) -> None:
    parse = import_container().parse
    _, spec = pod(documents)
    server = spec["containers"][0]
    probes = [server[probe]["exec"]["command"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    for command in [*probes, *(container["args"] for container in containers(spec))]:
        assert command[:2] == PROGRAM
        parse(command[2:])
    assert all("command" not in container for container in containers(spec)), "NVIDIA's entrypoint must stay"
    options = parse(server["args"][2:])
    plans = [parse(container["args"][2:]) for container in spec.get("initContainers", [])]
    assert options.repository == (plans[0].into if plans else Path("/source"))
    assert [str(plan.source) for plan in plans] == ["/source"] * len(plans)


def test_what_the_container_says_is_waited_for(documents: list[Json]) -> None:
    container = import_container()
    _, spec = pod(documents)
    server = spec["containers"][0]
    sleep, before = server["lifecycle"]["preStop"]["exec"]["command"]
    ends = int(before) + container.parse(server["args"][2:]).grace + container.REFUSE_S + container.KILL_AFTER_S
    assert (sleep, spec["terminationGracePeriodSeconds"] > ends) == ("sleep", True), "a pod must not be killed"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["timeoutSeconds"] > container.HEALTH_S + 1
    (shared,) = (volume["emptyDir"] for volume in spec["volumes"] if "medium" in volume.get("emptyDir", {}))
    assert shared["sizeLimit"] == "1Gi"


def test_a_cpu_gets_as_many_threads_as_it_may_use(combined: Combined) -> None:
    server = pod(combined("cpu", ()))[1]["containers"][0]
    assert (
        f"--backend-config=onnxruntime,intra_op_thread_count={server['resources']['limits']['cpu']}" in server["args"]
    )
    assert server["resources"]["limits"] == server["resources"]["requests"]


# --- in agreement with monitoring


def test_the_alerts_are_those_of_monitoring_and_the_job_has_their_name(documents: list[Json]) -> None:
    rule = prometheus_rule()
    validate(rule)
    assert rule["spec"] == yaml.safe_load((MONITORING / "alerts.yml").read_text())
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    labels, _ = pod(documents)
    for document in documents:
        if document["kind"] == "PodMonitor":
            assert labels[document["spec"]["jobLabel"]] == job["job_name"]
