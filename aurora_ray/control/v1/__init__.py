"""The control API, generated from proto/aurora_ray/control/v1."""
