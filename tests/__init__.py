"""The tests, one directory per area. `tests/support` is shared; `tests/house` checks the house's own rules."""
