"""The clocks of both sides, and the search for the splits that end earliest: against every choice on small networks."""

import itertools
import random

import pytest
from lowering import lower

from tvm_coexec.graph.dependencies import Read, Work
from tvm_coexec.planning.simulation import Costs, Option, search, simulate

COSTS = Costs(wait_us=3.0, launch_us=1.0)


def option(cpu_units, gpu_units, us=60.0):
    """A step of ``us`` on either side, in equal units."""
    units = cpu_units + gpu_units
    return Option(cpu_units, gpu_units, us * cpu_units / units, us * gpu_units / units)


def options(units, us):
    return [option(cpu_units, units - cpu_units, us) for cpu_units in range(units + 1)]


def chain(count, *, local=()):
    return [(), *((Read(number, local),) for number in range(1, count))]


def test_one_split_step_takes_its_longer_half_and_a_synchronisation():
    assert simulate([()], [Option(2, 2, 30.0, 20.0)], COSTS) == 33.0
    assert simulate([()], [option(4, 0)], COSTS) == 60.0
    assert simulate([()], [option(0, 4)], COSTS) == 61.0


def test_small_steps_of_the_gpu_begin_an_interval_apart_and_large_ones_overlap():
    costs = Costs(wait_us=3.0, launch_us=-2.0, interval_us=6.0)
    assert simulate(chain(3), [option(0, 4, us) for us in (1.0, 7.0, 30.0)], costs) == 6 + 6 + 28


def test_a_chain_waits_at_every_step_unless_its_reads_are_local():
    split = [option(2, 2)] * 3
    assert simulate(chain(3), split, COSTS) == 3 * (30 + 3)
    assert simulate(chain(3, local=("channels",)), split, COSTS) == 3 * 30 + 2 * 1 + 3


def test_branches_run_side_by_side():
    reads = [(), (), (Read(1), Read(2))]
    assert simulate(reads, [option(4, 0), option(0, 4), option(4, 0)], COSTS) == 61 + 3 + 60


def test_a_side_that_knows_of_a_later_step_does_not_wait_again():
    reads = [(), (Read(1),), (Read(2),), (Read(1),)]
    chosen = [option(0, 4), option(0, 4), option(4, 0), option(4, 0)]
    assert simulate(reads, chosen, COSTS) == 61 + 61 + 3 + 60 + 60


def test_a_chain_of_equal_steps_is_split_evenly_throughout():
    assert search(chain(20), lambda number, written: options(4, 60.0), COSTS) == (option(2, 2),) * 20


def test_a_tiny_step_between_large_ones_stays_whole():
    careful = Costs(3.0, 1.0, margin_us=1.5)
    chosen = search(chain(3), lambda number, written: options(4, 0.5 if number == 2 else 60.0), careful)
    assert [one.cpu_units for one in chosen] in ([2, 4, 2], [2, 0, 2])


def test_a_channel_local_chain_needs_no_flag():
    reads = chain(6, local=("channels",))
    chosen = search(reads, lambda number, written: options(4, 4.0 + 7 * number), COSTS)
    works = [Work(one.cpu_units, one.gpu_units, read) for one, read in zip(chosen, reads, strict=True)]
    assert {one.cpu_units for one in chosen} == {2}
    assert lower(works, "svm").sync_count == 1


def test_an_uncertain_gain_is_not_taken():
    def choose(factor, margin_us):
        ways = [option(4, 0, 100.0), Option(2, 2, 92.0, 92.0, uncertainty_factor=factor)]
        return search([()], lambda number, written: ways, Costs(3.0, 0.0, margin_us=margin_us))[0].cpu_units

    assert (choose(1.0, 0.0), choose(1.06, 0.0), choose(1.0, 6.0)) == (2, 4, 4)


def test_what_is_written_is_told_to_the_choice():
    seen = []

    def ways(number, written):
        seen.append({step: one.option for step, one in written.items()})
        return [option(3, 1)]

    search([(), (Read(1),), (Read(1),), (Read(3),)], ways, COSTS)
    assert seen == [{}, {1: option(3, 1)}, {1: option(3, 1)}, {3: option(3, 1)}]


@pytest.mark.parametrize("seed", [8, 3049, *range(100, 120)])
def test_no_choice_on_a_small_network_is_much_better_than_the_one_found(seed):
    rng = random.Random(seed)
    reads, menus = [], []
    for number in range(rng.randint(2, 5)):
        sources = rng.sample(range(1, number + 1), min(number, rng.randint(1, 2))) if number else []
        reads.append(tuple(Read(source, ("channels",) if rng.random() < 0.4 else ()) for source in sources))
        cpu_us, gpu_us = rng.choice([2.0, 15.0, 90.0]), rng.choice([0.5, 1.0, 2.5])
        menus.append([Option(cpu, 4 - cpu, cpu_us * cpu / 4, gpu_us * cpu_us * (4 - cpu) / 4) for cpu in range(5)])
    best_us = min(simulate(reads, chosen, COSTS) for chosen in itertools.product(*menus))
    found_us = simulate(reads, search(reads, lambda number, written: menus[number - 1], COSTS), COSTS)
    assert found_us <= 1.03 * best_us


def test_an_empty_network_takes_no_time():
    assert simulate([], [], COSTS) == 0
    assert search([], lambda number, written: [], COSTS) == ()


def test_halves_that_wait_start_after_both_sides():
    late = simulate(chain(2), [Option(2, 2, 10.0, 50.0), option(4, 0)], COSTS)
    assert late == pytest.approx(50 + 3 + 60)
