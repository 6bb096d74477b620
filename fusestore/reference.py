"""Image names as users write them.

The grammar is distribution's (``reference/regexp.go``): ``[DOMAIN/]PATH[:TAG][@DIGEST]``.  The first
component is a domain if it has a dot or a colon or is ``localhost``.  A bare ``debian`` is
``docker.io/library/debian:latest`` to registries; what a user made here is ``localhost/debian:latest``, and
lookups try both, local first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fusestore.errors import InvalidReference

DEFAULT_DOMAIN = "docker.io"
_OLD_DEFAULT = "index.docker.io"
LOCAL_DOMAIN = "localhost"
DEFAULT_TAG = "latest"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_HOST = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_HOST}(?:\.{_HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_NAME_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed name.  `domain` is "" when none was given; `tag` and `digest` likewise."""

    domain: str
    path: str
    tag: str
    digest: str

    def full(self, domain: str = DEFAULT_DOMAIN) -> str:
        """The name with everything filled in; `domain` is used if none was given."""
        domain = self.domain or domain
        path = self.path
        if domain == DEFAULT_DOMAIN and "/" not in path:
            path = f"library/{path}"
        tag = self.tag or ("" if self.digest else DEFAULT_TAG)
        return f"{domain}/{path}{':' + tag if tag else ''}{'@' + self.digest if self.digest else ''}"


def parse(text: str) -> Reference:
    """`text` as a name.  Raises InvalidReference."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise InvalidReference(text, "what follows @ is not a sha256 digest")
    first, slash, remainder = rest.partition("/")
    domain = ""
    if slash and ("." in first or ":" in first or first == LOCAL_DOMAIN or first != first.lower()):
        if not _DOMAIN.fullmatch(first):
            raise InvalidReference(text, f"{first!r} is not a host name")
        domain, rest = (DEFAULT_DOMAIN if first == _OLD_DEFAULT else first), remainder
    path, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidReference(text, "a tag is up to 128 letters, digits, _ . and -")
    if not _PATH.fullmatch(path):
        reason = (
            "it must be lower case"
            if path != path.lower()
            else "a name is lower-case words joined by . _ - /"
        )
        raise InvalidReference(text, reason)
    if not domain and _IMAGE_ID.fullmatch(path):
        raise InvalidReference(text, "64 hex digits are an image id")
    if len(domain) + len(path) > _NAME_LIMIT:
        raise InvalidReference(text, f"over {_NAME_LIMIT} characters")
    return Reference(domain, path, tag, digest)


def candidates(text: str) -> list[str]:
    """The full names that `text` may stand for, in the order they are tried.  Raises InvalidReference."""
    reference = parse(text)
    if reference.domain:
        return [reference.full()]
    return [reference.full(LOCAL_DOMAIN), reference.full(DEFAULT_DOMAIN)]


def repository_and_tag(name: str) -> tuple[str, str]:
    """A full name as the two columns of an image list."""
    name = name.partition("@")[0]
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, "<none>"
    return repository, tag
