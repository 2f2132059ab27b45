"""Another user of the machine, who knocks at every door of a fleet: `python -m tests.support.stranger < doors.json`.

Reads {"doors": [...], "paths": [...]} (see tests/support/sockets.py), turns into the user nobody if it is root, and
writes what each door said, {"told": {door: {way of asking: answer}}}, and which of the paths it could open, {"opened":
[...]}. An answer that begins with "ok" is none for a stranger.
"""

import copy  # noqa: F401  (what is imported later cannot be: nobody may not read this installation)
import encodings.idna  # noqa: F401
import importlib
import json
import os
import pkgutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import grpc._channel

from aurora_ray.control.v1 import control_pb2
from aurora_ray.rpc.admission import Caller, Secret
from aurora_ray.storage.v1 import storage_pb2
from tests.support.sockets import Door
from tests.support.stack_process import ROOT
from tests.support.timing import scaled

TIMEOUT_S = 5.0
NOBODY = 65534
READ_BYTES = 4096


def methods() -> list[str]:
    """Of every service that may be behind a port: all of ours, gRPC's own, and the first and last of each of Ray's."""
    files = (storage_pb2.DESCRIPTOR, control_pb2.DESCRIPTOR)
    found = [f"/{s.full_name}/{m.name}" for f in files for s in f.services_by_name.values() for m in s.methods]
    package = importlib.import_module("ray.core.generated")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_pb2"):
            loaded = importlib.import_module(f"ray.core.generated.{module.name}")
            for service in loaded.DESCRIPTOR.services_by_name.values():
                found += [f"/{service.full_name}/{service.methods[at].name}" for at in (0, -1)]
    return sorted({*found, "/grpc.health.v1.Health/Check"})


def by_grpc(place: str, asked: list[str], secret: Secret) -> Iterator[tuple[str, str]]:
    """Each method without a proof; ours with another fleet's as well."""
    with grpc.insecure_channel(place) as channel:
        for method in asked:
            proofs: list[tuple[str, Any]] = [("", ())]
            if method.startswith("/aurora_ray"):
                proofs.append((" with another secret", (Caller("x", place, secret).prove(method).entry,)))
            for way, metadata in proofs:
                try:
                    call: Any = channel.unary_unary(method, None, None)
                    reply = call(b"", timeout=TIMEOUT_S, metadata=metadata)
                    yield method + way, f"ok: {len(reply)} bytes"
                except grpc.RpcError as error:
                    code = error.code().name
                    yield method + way, code
                    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and method == asked[0]:
                        return  # nobody speaks gRPC here


def by_http(place: str) -> str:
    """The first line of the answer, if it is one of HTTP."""
    for path in ("/metrics", "/"):
        said = exchange(place, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if not said.startswith(b"HTTP/"):
            return "no HTTP"
        line = said.partition(b"\r\n")[0].decode(errors="replace")
        if " 200" in line:
            return f"ok {path}"
    return line


def by_postgres(place: str) -> str:
    """What a login as the superuser without a password leads to."""
    options = b"user\0postgres\0database\0postgres\0\0"
    said = exchange(place, struct.pack(">II", 8 + len(options), 196608) + options)
    if said[:1] == b"R" and len(said) >= 9:
        (kind,) = struct.unpack_from(">I", said, 5)
        return "ok: admitted" if kind == 0 else f"password wanted ({kind})"
    return "no PostgreSQL" if said[:1] != b"E" else "refused"


def exchange(place: str, content: bytes) -> bytes:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as connection:
            connection.settimeout(1.0)
            connection.sendall(content)
            return connection.recv(READ_BYTES)
    except OSError:
        return b""


def by_path(path: str) -> str:
    """Connecting to a Unix socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
    except OSError as error:
        return type(error).__name__
    return "ok: connected"


def opened(paths: list[str]) -> list[str]:
    """Those of the paths that can be read, listed or written to."""
    found = []
    for path in paths:
        for flags in (os.O_RDONLY, os.O_WRONLY):
            try:
                os.close(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
            except OSError:
                continue
            found.append(path)
            break
    return found


def main() -> None:
    task = json.load(sys.stdin)
    doors = [Door(*fields) for fields in task["doors"]]
    asked, secret = methods() if doors else [], Secret.new()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    told: dict[str, dict[str, str]] = {}
    for door in doors:
        if door.kind == "tcp":
            ways = dict(by_grpc(door.place, asked, secret))
            ways["http"], ways["postgres"] = by_http(door.place), by_postgres(door.place)
        elif door.kind == "unix":
            ways = {"connect": by_path(door.place)}
        else:
            ways = {"": f"ok: a door of the kind {door.kind}, for which nobody has an argument"}
        told[f"{door.kind} {door.place}"] = ways
    json.dump({"told": told, "opened": opened(task["paths"])}, sys.stdout)


def ask(doors: Iterable[Door], paths: Iterable[str] = ()) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Sends a stranger: what the doors told it, and which of the paths it could open."""
    task = json.dumps({"doors": list(doors), "paths": list(paths)})
    command = [sys.executable, "-m", "tests.support.stranger"]
    done = subprocess.run(
        command, input=task, capture_output=True, text=True, check=False, timeout=scaled(240), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["told"], found["opened"]


if __name__ == "__main__":
    main()
