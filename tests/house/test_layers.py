"""Dependencies point downwards only; one folder knows Ray.

The table says what each part of the package may import, besides itself. It is the layering of ARCHITECTURE.md in a form
that can fail: to add an edge, change the table, and be ready to say why.
"""

from tests.house.source import imports, package_modules, where

_BASE = {"durable", "errors", "troubles"}
_DATA_PATH = _BASE | {"log", "rpc", "telemetry"}
_LOWER = _DATA_PATH | {"interposer", "config", "regions"}
_ACTORS = _LOWER | {"volume", "mount", "engine", "storage"}
_MIDDLE = _ACTORS | {"backup", "compute", "endpoint", "replication", "serverless"}

MAY_IMPORT: dict[str, set[str]] = {
    "durable": set(),
    "errors": set(),
    "troubles": set(),
    "config": _BASE,
    "regions": _BASE | {"config"},
    "telemetry": _BASE,
    "log": _BASE,  # pure data
    "rpc": _BASE | {"telemetry", "storage.v1"},  # the messages, for the client of storage nodes
    "interposer": _BASE | {"log"},
    "storage": _DATA_PATH,
    "volume": _LOWER | {"storage.v1"},  # the messages, never the server
    "mount": _LOWER | {"volume"},
    "engine": _LOWER,
    "endpoint": _LOWER,
    "compute": _ACTORS | {"backup", "replication"},  # a replicator is run like any other instance
    "replication": _ACTORS,
    "backup": _ACTORS | {"replication"},
    "serverless": _ACTORS | {"compute"},
    "control": _MIDDLE,
    "ray": _MIDDLE | {"control"},
    "cli": _MIDDLE | {"control", "ray"},
}

RAY_USERS = {"ray"}


def _area(module: str) -> str:
    """`aurora_ray.volume.write.volume` belongs to `volume`; `aurora_ray.storage.v1…` to `storage.v1`, its own thing."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:2] == ["storage", "v1"] else parts[0] if parts else ""


def _allowed(importer: str, imported: str) -> bool:
    if imported in ("", importer) or importer.startswith(imported + "."):
        return True
    allowed = MAY_IMPORT[importer]
    return imported in allowed or (imported == "storage.v1" and ("storage" in allowed or importer == "storage"))


def test_every_part_has_a_place_in_the_table() -> None:
    areas = {_area(module).partition(".")[0] for _, module in package_modules()} - {"", "__main__", "version"}
    assert areas <= MAY_IMPORT.keys()


def test_imports_point_downwards() -> None:
    wrong = []
    for path, module in package_modules():
        importer = _area(module)
        if importer not in MAY_IMPORT:
            continue
        for node, name in imports(path, module):
            if name.partition(".")[0] == "aurora_ray" and not _allowed(importer, _area(name)):
                wrong.append(f"{where(path, node)}: {importer} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_ray_is_imported_by_one_folder_only() -> None:
    wrong = [
        f"{where(path, node)}: {_area(module)} must run without Ray"
        for path, module in package_modules()
        if _area(module) not in RAY_USERS
        for node, name in imports(path, module)
        if name.partition(".")[0] == "ray"
    ]
    assert not wrong, "\n".join(wrong)


def test_table_has_no_cycle() -> None:
    def reachable(area: str, seen: frozenset[str] = frozenset()) -> None:
        assert area not in seen, f"{area} can import itself by way of {sorted(seen)}"
        for lower in MAY_IMPORT.get(area, ()):
            reachable(lower, seen | {area})

    for area in MAY_IMPORT:
        reachable(area)


# The rooms of each part that has some, the lowest first. A room is a folder or a file; what is named nowhere in its
# part (settings, messages) lies below all of it.
ROOMS: dict[str, tuple[str, ...]] = {
    "control": ("model", "decide", "observe", "report", "perform", "faults", "plane", "api"),
    "storage": ("disk", "segment", "pages", "node", "heal", "server", "__main__"),
}


def test_rooms_import_downwards() -> None:
    """For types too: a name in an annotation is a dependency of whoever reads it."""
    wrong = []
    for path, module in package_modules():
        part, importer = _room(module)
        for node, name in imports(path, module):
            there, imported = _room(name)
            if part and there == part and imported > importer:
                wrong.append(f"{where(path, node)}: {module} must not import {name}")
    assert not wrong, "\n".join(wrong)


def _room(module: str) -> tuple[str, int]:
    """The part, and a number that grows upwards in it; no part where there are no rooms."""
    parts = module.split(".")
    if len(parts) < 2 or parts[0] != "aurora_ray" or parts[1] not in ROOMS:
        return "", -1
    rooms = ROOMS[parts[1]]
    return parts[1], rooms.index(parts[2]) if len(parts) > 2 and parts[2] in rooms else -1


def test_no_files_import_each_other_in_a_circle() -> None:
    """Over any number of steps, for types too."""
    modules = {module: path for path, module in package_modules()}
    below: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = [name for _, name in imports(path, module)]
        known = (name if name in modules else name.rpartition(".")[0] for name in names)
        below[module] = {name for name in known if name in modules and name != module}
    left = dict(below)
    while free := [module for module, lower in left.items() if not lower & left.keys()]:
        for module in free:
            del left[module]
    # What only stands above a circle is none of its files.
    while above := [module for module in left if not any(module in lower for lower in left.values())]:
        for module in above:
            del left[module]
    found = {module: sorted(lower & left.keys()) for module, lower in left.items()}
    assert not found, "these import each other: " + "; ".join(f"{m} imports {', '.join(n)}" for m, n in found.items())
