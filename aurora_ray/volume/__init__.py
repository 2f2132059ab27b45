"""The client side of a volume: its shape, who may write (recovery), and the rooms `write` and `read`."""
