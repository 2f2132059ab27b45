"""What tests of all areas share: waiting, ports, and the checks that a test leaves nothing behind."""
