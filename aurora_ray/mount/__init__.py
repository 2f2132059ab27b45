"""A volume as a directory: the driver of the shared region, pages that are fetched when they are missed, the cache."""
