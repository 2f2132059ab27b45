"""Metrics of many processes in one text."""

from prometheus_client.parser import text_string_to_metric_families

from aurora_ray.telemetry.fleet_metrics import family, merge

ONE = b"""# HELP aurora_x_seconds How long
# TYPE aurora_x_seconds histogram
aurora_x_seconds_bucket{le="1.0"} 1.0
aurora_x_seconds_bucket{le="+Inf"} 2.0
aurora_x_seconds_count 2.0
aurora_x_seconds_sum 3.5
# HELP aurora_y_total Count of {things} done
# TYPE aurora_y_total counter
aurora_y_total 7.0
"""


def test_a_family_is_one_block_and_says_whose_each_sample_is() -> None:
    text = merge([({"process": "a"}, ONE), ({"process": 'b"2'}, ONE)]).decode()
    assert text.count("# TYPE aurora_x_seconds histogram") == 1
    families = {one.name: one for one in text_string_to_metric_families(text)}
    counts = {s.labels["process"]: s.value for s in families["aurora_y"].samples}
    assert counts == {"a": 7.0, 'b"2': 7.0}
    assert len(families["aurora_x_seconds"].samples) == 8


def test_plain_numbers_become_a_family() -> None:
    samples = [({"cluster": "demo"}, 20809248.0), ({"cluster": "b"}, 0.5)]
    text = family("aurora_volume_vdl_bytes", "gauge", "VDL", samples)
    (parsed,) = text_string_to_metric_families(text.decode())
    assert [sample.value for sample in parsed.samples] == [20809248.0, 0.5]


def test_nothing_is_nothing() -> None:
    assert merge([]) == b""
