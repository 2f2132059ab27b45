"""What long-lived processes ask of the kernel."""

import resource

from aurora_ray.rpc.process import raise_descriptor_limit


def test_the_soft_limit_of_open_files_becomes_the_hard_one_and_is_never_lowered() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
        raised = raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)
        assert raised == min(hard if hard != resource.RLIM_INFINITY else 1 << 20, 1 << 20)
        assert raise_descriptor_limit() == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
