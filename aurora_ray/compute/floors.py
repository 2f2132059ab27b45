"""What of a reader's own writes a volume is known to have, should the reader go on as the writer. Pure.

A crash is recovered then from the redo point of a checkpoint that the writer before has completed, so all that is older
than that is in the volume. What the engine has written to its mount while it had been given no more of the log than up
to there, is older. Hence pairs, noted now and then: where the mount's own log was, and then, what the engine had been
given by that time at most. What it says that it has replayed would not do: it may have replayed more by then."""

from __future__ import annotations

from typing import Final

NOTES_MAX: Final = 256  # then every other one of the older half goes


class Floors:
    """Notes of one reader, in order."""

    def __init__(self) -> None:
        self._notes: list[tuple[int, int]] = []  # given, log position

    def note(self, log_position: int, given: int) -> None:
        """`given` was read after `log_position`; 0: that is not known yet."""
        if not given or (self._notes and self._notes[-1] == (given, log_position)):
            return
        if self._notes and self._notes[-1][0] == given:
            self._notes[-1] = (given, log_position)
        else:
            self._notes.append((given, log_position))
        if len(self._notes) > NOTES_MAX:
            half = NOTES_MAX // 2
            self._notes = [*self._notes[:half:2], *self._notes[half:]]

    def at(self, position: int) -> int:
        """Up to where the mount's own log has nothing that is newer than this position; 0: nothing is known to be."""
        return next((log for given, log in reversed(self._notes) if given <= position), 0)
