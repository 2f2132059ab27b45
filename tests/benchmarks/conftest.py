"""Real engines, as in the engine's own tests."""

from tests.engine.conftest import account, image_cache, install

__all__ = ["account", "image_cache", "install"]
