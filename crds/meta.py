"""What every resource has: metadata, label selectors and conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, dataclass_transform

import msgspec

GROUP = "tidegate.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


# Types only: tells type checkers that subclasses inherit frozen and kw_only, as msgspec itself does.
@dataclass_transform(frozen_default=True, kw_only_default=True)
class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value of the vocabulary: immutable, with unset fields left out when encoded."""


class ObjectMeta(Model):
    """The metadata that decisions may depend on."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resourceVersion: str = ""
    creationTimestamp: str = ""
    deletionTimestamp: str | None = None
    finalizers: Sequence[str] = ()
    labels: Mapping[str, str] = {}


class Requirement(Model):
    """One `matchExpressions` item of a label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Sequence[str] = ()


class LabelSelector(Model):
    """A Kubernetes label selector; an empty one matches everything."""

    matchLabels: Mapping[str, str] = {}
    matchExpressions: Sequence[Requirement] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether `labels` satisfy every part of this selector.

        >>> LabelSelector(matchLabels={"app": "web"}).matches({"app": "web", "tier": "1"})
        True
        """
        return all(labels.get(key) == value for key, value in self.matchLabels.items()) and all(
            _holds(requirement, labels) for requirement in self.matchExpressions
        )


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    match requirement.operator:
        case "In":
            return labels.get(requirement.key) in requirement.values
        case "NotIn":
            # As Kubernetes does: an absent key is "not in" every list.
            return labels.get(requirement.key) not in requirement.values
        case "Exists":
            return requirement.key in labels
        case "DoesNotExist":
            return requirement.key not in labels


class Condition(Model):
    """A condition by the Kubernetes API conventions."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observedGeneration: int = 0
    lastTransitionTime: str = ""
