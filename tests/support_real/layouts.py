"""OCI layouts and Docker archives made by hand from layer tars."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

_KINDS = "application/vnd.oci.image"
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def configuration(tars: Sequence[bytes]) -> bytes:
    """An image configuration for these layers."""
    return json.dumps(
        {
            "created": "2021-05-04T03:02:01.123456789Z",
            "architecture": _ARCHITECTURE,
            "os": "linux",
            "config": {"Env": ["A=b"], "Labels": {"what": "a test"}},
            "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in tars]},
        }
    ).encode()


def oci(
    directory: Path, tars: Sequence[bytes], ref: str = "test", pack: Callable[[bytes], bytes] = gzipped
) -> Path:
    """Write an OCI layout with one image into `directory`."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict:
        digest = sha256(data)
        (blobs / digest[7:]).write_bytes(data)
        return {"mediaType": f"{_KINDS}.{kind}", "digest": digest, "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_KINDS}.manifest.v1+json",
        "config": blob(configuration(tars), "config.v1+json"),
        "layers": [blob(pack(tar), "layer.v1.tar+gzip") for tar in tars],
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": ref}
    index = {"schemaVersion": 2, "manifests": [entry]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def layer_blobs(layout: Path) -> list[Path]:
    """The layer blobs of the only image of an OCI layout, from the base up."""
    blobs = layout / "blobs/sha256"
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = json.loads((blobs / entry["digest"][7:]).read_bytes())
    return [blobs / layer["digest"][7:] for layer in manifest["layers"]]


def docker_archive(tars: Sequence[bytes], tag: str = "localhost/test:latest") -> bytes:
    """What ``docker save`` would write."""
    config = configuration(tars)
    names = [f"{sha256(tar)[7:]}.tar" for tar in tars]
    manifest = [{"Config": f"{sha256(config)[7:]}.json", "RepoTags": [tag], "Layers": names}]
    files = dict(zip(names, tars, strict=True))
    files |= {manifest[0]["Config"]: config, "manifest.json": json.dumps(manifest).encode()}
    return archive(files)


def archive(files: dict[str, bytes]) -> bytes:
    """A plain tar of these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return stream.getvalue()
