"""Addresses for drivers: one for each port, none twice, and only where a fleet is on one machine."""

import ipaddress

import pytest

from aurora_ray.control.model.addresses import HOST_PATTERN, are_there, host_id, own_address


def test_each_port_has_an_address_of_its_own_beside_everybodys() -> None:
    found = {own_address(port) for port in range(1024, 65536)}
    assert len(found) == 65536 - 1024
    assert all(ipaddress.ip_address(each) in ipaddress.ip_network("127.0.0.0/16") for each in found)
    # What is below is taken for an ordinary address: engine/postgres/functions.py
    assert not any(ipaddress.ip_address(each) in ipaddress.ip_network("127.0.0.0/22") for each in found)
    assert own_address(15435) == HOST_PATTERN.replace("?", host_id(15435)) == "127.0.60.75"


@pytest.mark.parametrize(
    ("host", "there"),
    [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("192.0.2.7", False), ("::1", False), ("db", False)],  # noqa: S104
)
def test_they_are_for_a_fleet_on_one_machine(host: str, there: bool) -> None:
    assert are_there(host) is there
