"""Facts about the CRD yaml: it says the same as the models."""

from __future__ import annotations

import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
import yaml

from tidegate.crds.capture import PacketCapture
from tidegate.crds.cluster_state import ClusterState
from tidegate.crds.egress import EgressPolicy
from tidegate.crds.ipam import IPPool
from tidegate.crds.lb import LoadBalancer
from tidegate.crds.meta import GROUP, VERSION, ObjectMeta
from tidegate.crds.node_state import NodeState
from tidegate.crds.reasons import Reason
from tidegate.crds.routing import ClusterNetwork

CRDS = Path(__file__).parents[2] / "crds"
KINDS = {
    "egress": EgressPolicy,
    "ipam": IPPool,
    "routing": ClusterNetwork,
    "lb": LoadBalancer,
    "capture": PacketCapture,
    "node_state": NodeState,
    "cluster_state": ClusterState,
}


_USERS_ITEM = re.compile(r"(egress|ipam|routing|lb|capture)\.spec\..*\[\]")


def definition(stem: str) -> Any:
    return yaml.safe_load((CRDS / f"{stem}.yaml").read_text())


def compare(schema: Any, wanted: Any, where: str) -> list[str]:
    """Return what differs between a schema and the type `wanted`."""
    origin = get_origin(wanted)
    if origin in (Union, UnionType):
        (inner,) = set(get_args(wanted)) - {NoneType}
        return compare(schema, inner, where)
    if wanted is ObjectMeta:
        return []
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return compare_struct(schema, wanted, where)
    if origin is Literal:
        same = schema["type"] == "string" and set(schema.get("enum", ())) == set(get_args(wanted))
        return [] if same else [f"{where}: enum {schema.get('enum')} is not {get_args(wanted)}"]
    match schema["type"]:
        case "array":
            return compare(schema["items"], get_args(wanted)[0], f"{where}[]")
        case "object":
            return compare(schema["additionalProperties"], get_args(wanted)[1], f"{where}{{}}")
        case simple:
            expected = {str: "string", int: "integer", bool: "boolean"}[wanted]
            return [] if simple == expected else [f"{where}: {simple} is not {expected}"]


def compare_struct(schema: Any, wanted: type[msgspec.Struct], where: str) -> list[str]:
    properties = {name: value for name, value in schema["properties"].items() if name not in ("apiVersion", "kind")}
    fields = {field.name: field for field in msgspec.structs.fields(wanted)}
    found = [f"{where}.{name}: only in one of yaml and model" for name in properties.keys() ^ fields.keys()]
    for name in properties.keys() & fields.keys():
        field, part = fields[name], properties[name]
        required = name in schema.get("required", ()) or name == "metadata"
        if required != field.required:
            found.append(f"{where}.{name}: required is {required} in yaml, {field.required} in the model")
        # A default inside a list that a user writes makes whoever applies the same file again find a difference.
        default = None if _USERS_ITEM.fullmatch(where) else field.default
        if isinstance(field.default, str | int | bool) and part.get("default") != default:
            found.append(f"{where}.{name}: default {part.get('default')!r} is not {default!r}")
        found += compare(part, field.type, f"{where}.{name}")
    return found


@pytest.mark.parametrize("stem", KINDS)
def test_yaml_and_model_agree(stem: str) -> None:
    """Same fields, types, enums, defaults and required fields, in both directions."""
    found = definition(stem)
    (version,) = found["spec"]["versions"]
    assert (found["spec"]["group"], version["name"]) == (GROUP, VERSION)
    assert found["spec"]["names"]["kind"] == KINDS[stem].__name__
    assert compare(version["schema"]["openAPIV3Schema"], KINDS[stem], stem) == []


@pytest.mark.parametrize("stem", ["egress", "ipam", "routing", "lb", "capture"])
def test_every_user_field_is_described(stem: str) -> None:
    """`kubectl explain` has something to say about everything that people write."""

    def silent(schema: Any, where: str) -> list[str]:
        found = [] if where == "" or "description" in schema else [where]
        for name, part in schema.get("properties", {}).items():
            if name not in ("apiVersion", "kind", "metadata", "podSelector", "namespaceSelector", "nodeSelector"):
                found += silent(part, f"{where}.{name}")
        items = schema.get("items", {})
        for name, part in items.get("properties", {}).items():
            found += silent(part, f"{where}[].{name}")
        return found

    (version,) = definition(stem)["spec"]["versions"]
    assert silent(version["schema"]["openAPIV3Schema"], "") == []


def test_reasons_are_distinct_words_with_sentences() -> None:
    """A reason is one CamelCase word, and explains itself in a sentence."""
    for reason in Reason:
        assert reason.value.isalnum()
        assert reason.value[0].isupper()
        assert reason.sentence.endswith(".")
    assert len({reason.value for reason in Reason}) == len(Reason)
