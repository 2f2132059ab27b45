"""The log of a volume as its writer makes it: whole flushes, in order, only what is durable."""
