"""Writes down what clients did, while they do it: a history, as a file and in memory (see tests.histories.model)."""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.histories.model import Append, History, Op, Outcome, Txn, Write, op_to_json
from tests.histories.rewinds import Rewind, taken_back

# What a client may be told while something is lost: a broken or refused connection (None: the client noticed by
# itself; classes 08 and 57), or that it must try again (class 40). Anything else is a wrong answer.
ALLOWED_SQLSTATES = (None, "08", "57", "40")
ODD_ERRORS_MAX = 100


class Recorder:
    """Clients of several threads write to it. Ids of transactions go on from round to round, starting at `first_id`."""

    def __init__(self, path: Path, header: dict[str, object], accounts: dict[str, int], first_id: int) -> None:
        self.path = path
        self.odd_errors: list[str] = []
        self.ok = Counter[str]()  # acknowledged so far, by "reads" and "writes", and "snapshots" of readers
        self._accounts = accounts
        self._lock = threading.Lock()
        self._file = path.open("w", encoding="utf-8", buffering=1 << 16)
        self._next_id = first_id
        self._txns: dict[int, Txn] = {}
        self._write_times_ns: list[int] = []
        self.rewinds: list[Rewind] = []
        self._write({"type": "run", **header, "accounts": accounts})

    @property
    def next_id(self) -> int:
        """The first id that is not taken."""
        return self._next_id

    def reserve_id(self) -> int:
        """An id, never given twice; the values that a transaction puts somewhere are made of it."""
        with self._lock:
            self._next_id += 1
            return self._next_id - 1

    def begin(self, id_: int, client: str, ops: tuple[Op, ...]) -> None:
        """Notes the beginning, before anything is sent."""
        with self._lock:
            now_ns = time.monotonic_ns()
            self._txns[id_] = Txn(id_, client, Outcome.INFO, ops, now_ns, None, "its end was not recorded")
            event: dict[str, object] = {"type": "begin", "txn": id_, "client": client, "time_ns": now_ns}
            self._write(event | {"ops": list(map(op_to_json, ops))})

    def end(self, id_: int, outcome: Outcome, ops: tuple[Op, ...], error: Exception | None = None) -> None:
        """Notes the end, after the answer has come; `ops` with what was read."""
        with self._lock:
            now_ns = time.monotonic_ns()
            begun = self._txns[id_]
            text = " ".join(str(error).split()) if error is not None else ""
            ended_ns = None if outcome is Outcome.INFO else now_ns
            self._txns[id_] = Txn(id_, begun.client, outcome, ops, begun.began_ns, ended_ns, text)
            event: dict[str, object] = {"type": outcome.value, "txn": id_, "time_ns": now_ns}
            self._write(event | {"ops": list(map(op_to_json, ops))} | ({"error": text} if text else {}))
            if outcome is Outcome.OK:
                writes = any(isinstance(op, Append | Write) for op in ops)
                self.ok["writes" if writes else "reads"] += 1
                if writes:
                    self._write_times_ns.append(now_ns)

    def note_error(self, client: str, error: Exception) -> None:
        """Keeps an error that no client should see, whatever happens to the server."""
        state: str | None = getattr(error, "sqlstate", None)
        if (state[:2] if state else None) not in ALLOWED_SQLSTATES:
            with self._lock:
                if len(self.odd_errors) < ODD_ERRORS_MAX:
                    self.odd_errors.append(f"{client} was told: {state} {' '.join(str(error).split())}")

    def note(self, kind: str, **fields: object) -> None:
        """Something that happened meanwhile, for whoever reads the file."""
        with self._lock:
            self._write({"type": kind, "time_ns": time.monotonic_ns(), **fields})

    def note_snapshot(self, session: str, values: Mapping[str, tuple[int, ...]]) -> None:
        """What somebody saw at the reader endpoint."""
        self.note("snapshot", session=session, values=values)
        with self._lock:
            self.ok["snapshots"] += 1

    def rewound(self, rewind: Rewind) -> None:
        """What was written was taken back, from a mark on."""
        self.rewinds.append(rewind)
        mark, over = [rewind.mark_began_ns, rewind.mark_ended_ns], [rewind.began_ns, rewind.ended_ns]
        self.note("rewind", mark=mark, rewind=over)

    def history(self) -> History:
        """What there is so far; call it when no client is at work."""
        with self._lock:
            return taken_back(History(list(self._txns.values()), dict(self._accounts)), self.rewinds)

    def acknowledged(self, before_ns: int) -> list[Txn]:
        """Those that were acknowledged by then."""
        with self._lock:
            txns = list(self._txns.values())
        return [txn for txn in txns if txn.outcome is Outcome.OK and (txn.ended_ns or before_ns + 1) <= before_ns]

    def outage_s(self) -> float:
        """The longest time between two acknowledged writes."""
        with self._lock:
            times = sorted(self._write_times_ns)
        return max((b - a for a, b in itertools.pairwise(times)), default=0) / 1e9

    def _write(self, event: dict[str, object]) -> None:
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """The file is whole."""
        self._file.close()
