"""Many processes' metrics as one Prometheus text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def merge(expositions: Iterable[tuple[Mapping[str, str], bytes]]) -> bytes:
    """Each text with labels that say whose it is; each family's description once, all its samples after it.

    Prometheus takes a family's samples only in one block, so texts cannot just be put one after the other.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for labels, text in expositions:
        extra = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
        family: tuple[list[str], list[str]] = ([], [])
        fresh = False
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                fresh = name not in families
                family = families.setdefault(name, ([], []))
            if line.startswith("#"):
                if fresh:
                    family[0].append(line)
            elif line:
                family[1].append(_labelled(line, extra))
    lines = [line for head, samples in families.values() for line in (*head, *samples)]
    return ("\n".join(lines) + "\n").encode() if lines else b""


def family(name: str, kind: str, description: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> bytes:
    """A family's text out of plain numbers, for what other processes told."""
    lines = [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        words = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{words}}} {value:g}" if value != int(value) else f"{name}{{{words}}} {int(value)}")
    return ("\n".join(lines) + "\n").encode()


def _labelled(line: str, extra: str) -> str:
    if not extra:
        return line
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f"{name}{{{extra},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{extra}}} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
