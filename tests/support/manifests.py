"""The folders of deploy/kubernetes as `kubectl kustomize` renders them, held to the schemas of what they hold.

As a program, `python tests/support/manifests.py`, it does that for all folders: a part of `make check`.
"""

from __future__ import annotations

import ast
import importlib.resources
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

Json = dict[str, Any]
KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
FOLDERS = ("base", "cpu", "gpu", "gpu-prebuilt", "kserve", "example")
VERSION = "1.37.0"
"""The release of Kubernetes whose schemas are taken."""
SCALARS = {"str": "string", "bool": "boolean", "int": "integer", "float": "number", "object": "object"}


class Invalid(Exception):
    """A document is not what its schema says; the message has the place and the reason."""


def program(name: str) -> str:
    """A program that pip put beside the Python of this environment."""
    return str(Path(sys.executable).with_name(name))


def render(folder: Path) -> list[Json]:
    """The documents that `kubectl apply -k` of that folder would send."""
    done = subprocess.run([program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Invalid(f"{folder}: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def prometheus_rule() -> Json:
    """What prometheus-rule.sh prints."""
    done = subprocess.run([str(KUBERNETES / "prometheus-rule.sh")], capture_output=True, text=True, check=True)
    rule: Json = yaml.safe_load(done.stdout)
    return rule


def validate(document: Json) -> None:
    """Raise Invalid for an unknown field, a wrong type, a missing field or an unknown kind."""
    group = document["apiVersion"].partition("/")[0]
    check = {"monitoring.coreos.com": _validate_monitoring, "serving.kserve.io": _validate_kserve}
    try:
        check.get(group, _validate_kubernetes)(document)
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path))
        raise Invalid(f"{document['kind']} {place}: {error.message}") from error


def _validate_kubernetes(document: Json) -> None:
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        raise Invalid(error.message) from error


def _validate_monitoring(document: Json) -> None:
    """Pydantic drops a field that it does not know, so what it has read is compared with what is there."""
    from cloudcoil.models.prometheus_operator import v1  # seconds

    try:
        read = getattr(v1, document["kind"]).model_validate(document)
    except ValueError as error:
        raise Invalid(f"{document['kind']}: {error}") from error
    if lost := list(_lost(document, read.model_dump(mode="json", by_alias=True, exclude_unset=True))):
        raise Invalid(f"{document['kind']}: no such field: {', '.join(lost)}")


def _lost(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Places of fields in `before` that are not in `after`."""
    if isinstance(before, Mapping):
        for key, value in before.items():
            if key in after:
                yield from _lost(value, after[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(before, Sequence) and not isinstance(before, str):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _lost(one, other, f"{place}.{i}")


def _validate_kserve(document: Json) -> None:
    schema, registry = _kserve()
    if document["kind"] != "InferenceService":
        raise Invalid(f"no schema for {document['kind']} of KServe")
    jsonschema.Draft202012Validator(schema, registry=registry).validate(document)


@cache
def _kserve() -> tuple[Json, Registry[Any]]:
    """A schema made of the models in KServe's wheel and of Kubernetes' own for the parts of a pod."""
    wheels = sorted(Path(sys.prefix, "wheels").glob("kserve-*.whl"))
    if not wheels:
        raise Invalid(f"no wheel of kserve in {sys.prefix}/wheels: run `make .venv/.tools`")
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}-local-strict"
    kubernetes = json.loads((folder / "_definitions.json").read_text())
    # Their full names end with ".v1.", and the short ones that the wheel uses.
    places = {name.split(".v1.")[-1]: f"{kubernetes['$id']}#/$defs/{name}" for name in kubernetes["$defs"]}
    schema = {"$ref": "#/$defs/V1beta1InferenceService", "$defs": dict(_kserve_models(wheels[-1], places))}
    return schema, Resource.from_contents(kubernetes) @ Registry()


def _kserve_models(wheel: Path, kubernetes: Mapping[str, str]) -> Iterator[tuple[str, Json]]:
    """Their tables are read, not imported: the wheel needs much that is not installed."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not re.fullmatch(r"kserve/models/v1beta1_\w+\.py", name):
                continue
            (model,) = (node for node in ast.parse(archive.read(name)).body if isinstance(node, ast.ClassDef))
            types, names = (
                ast.literal_eval(node.value)
                for node in model.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("openapi_types", "attribute_map")
            )
            fields = {names[field]: _schema(kind, kubernetes) for field, kind in types.items()}
            yield model.name, {"type": "object", "properties": fields, "additionalProperties": False}


def _schema(kind: str, kubernetes: Mapping[str, str]) -> Json:
    """The schema of a type as the generator of the wheel writes it."""
    if listed := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _schema(listed[1], kubernetes)}
    if mapped := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _schema(mapped[1], kubernetes)}
    if kind in SCALARS:
        return {"type": SCALARS[kind]}
    of_kubernetes = re.sub(r"^(K8sIoApiApps)?V1(?=[A-Z])", "", kind)
    return {
        "$ref": kubernetes.get(of_kubernetes, f"#/$defs/{kind}")
    }  # one that is nowhere is an error where it is used


def main() -> int:
    try:
        documents = [document for folder in FOLDERS for document in render(KUBERNETES / folder)]
        for document in [*documents, prometheus_rule()]:
            validate(document)
    except Invalid as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(documents) + 1} documents of Kubernetes are valid")
    return 0


if __name__ == "__main__":
    sys.exit(main())
