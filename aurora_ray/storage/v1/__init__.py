"""The storage protocol, generated from proto/aurora_ray/storage/v1."""
