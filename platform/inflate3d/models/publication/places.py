"""Names of published weights: which names they are, and where each says that its directory lies. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inflate3d.errors import InputError
from inflate3d.models.publication.layout import PREFIX

HUB = "hf-hub:"
SCHEMES = ("https://", "http://", "s3://")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(r"[A-Za-z0-9_][\w.+-]*")
_REVISION = re.compile(r"\w[\w./-]*")


@dataclass(frozen=True)
class HubPlace:
    """A repository on the Hub, at a branch, tag or commit (None: its main branch)."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def has_place(name: str) -> bool:
    """Does a name say itself where a published directory lies? Short names do not, and neither do timm's."""
    return name.startswith((PREFIX, HUB, *SCHEMES))


def parse_hub(name: str) -> HubPlace:
    """Read "hf-hub:org/name[@revision]". InputError for anything else: the parts go into paths and addresses."""
    repository, at, revision = name.removeprefix(HUB).partition("@")
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise InputError(f"{name!r}: expected {HUB}ORG/NAME, or {HUB}ORG/NAME@REVISION")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"{name!r}: {revision!r} is no branch, tag or commit")
    return HubPlace(repository, revision or None)


def parse_hub_file(name: str) -> tuple[HubPlace, str]:
    """Read "hf-hub:org/name[@revision]/file". InputError for anything else."""
    organisation, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, file = rest.partition("/")
    if not file or not all(_FILE.fullmatch(part) for part in file.split("/")):
        raise InputError(f"{name!r}: expected {HUB}ORG/NAME/FILE, or {HUB}ORG/NAME@REVISION/FILE")
    return parse_hub(f"{organisation}/{repository}"), file
