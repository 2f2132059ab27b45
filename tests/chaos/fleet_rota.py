"""All faults of a fleet, and which comes when."""

import random

from tests.chaos import fleet_faults, past_faults
from tests.chaos.fleet_faults import FleetFault

FLEET_FAULTS: dict[str, FleetFault] = {
    fault.__name__: fault
    for fault in (
        fleet_faults.kill_engine,
        fleet_faults.kill_backend,
        fleet_faults.kill_instance,
        fleet_faults.kill_all_instances,
        fleet_faults.kill_readers_engine,
        fleet_faults.kill_reader,
        fleet_faults.hang_reader,
        fleet_faults.kill_reader_and_engine,
        fleet_faults.fail_over_and_kill,
        fleet_faults.hang_engine,
        fleet_faults.hang_instance,
        fleet_faults.hang_instance_for_a_moment,
        fleet_faults.hang_writer_and_control,
        fleet_faults.cut_writer_from_nodes,
        fleet_faults.cut_control_off,
        fleet_faults.hang_control,
        fleet_faults.kill_control,
        fleet_faults.kill_control_and_engine,
        fleet_faults.kill_control_and_instance,
        fleet_faults.kill_twice,
        fleet_faults.fail_over_twice,
        fleet_faults.ask_for_failover,
        fleet_faults.kill_endpoint_and_engine,
        fleet_faults.hang_endpoint,
        fleet_faults.kill_two_nodes,
        fleet_faults.kill_four_nodes,
        fleet_faults.lose_zone,
        fleet_faults.lose_zone_and_node,
        fleet_faults.fail_over_during_repair,
        fleet_faults.fail_over_during_replacement,
        fleet_faults.power_cut,
        past_faults.clone,
        past_faults.clone_and_kill,
        past_faults.rewind,
        past_faults.rewind_and_kill,
        past_faults.rewind_during_replacement,
    )
}


def fault_of_round(seed: int, number: int) -> str:
    """Rounds go through all faults in a random order before one comes again."""
    turn, place = divmod(number - 1, len(FLEET_FAULTS))
    order = sorted(FLEET_FAULTS)
    random.Random(f"faults {seed}:{turn}").shuffle(order)
    return order[place]
