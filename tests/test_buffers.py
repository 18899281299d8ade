"""Which tensors share a storage buffer."""

from itertools import pairwise

import pytest

from tvm_coexec.compiler.buffers import assign_buffers, halos_to_clear
from tvm_coexec.layers import ImageLayout
from tvm_coexec.module.manifest import StepSpec
from tvm_coexec.module.tensors import TensorSpec

READS = [("x0",), ("x1",), ("x1", "x2"), ("x2", "x3"), ("x4",), ("x5",), ("x6",)]
"""What the steps read, the first of which writes x1. When x6 is written, the memory of x4 and x2 is free."""


LARGE = 1_000_000


def buffers(words: list[int]) -> list[int | None]:
    """Storage buffers of x0, x1 …, which need so many words."""
    return [tensor.buffer for tensor in assigned(words, {})]


def assigned(words: list[int], halos: dict[int, int]) -> tuple[TensorSpec, ...]:
    """x0, x1 … with their storage buffers; those that are named have halos of so many pixels, the others none."""
    names = [f"x{number}" for number in range(len(words))]
    layouts = [ImageLayout((halos.get(number, 0),) * 2) for number in range(len(words))]
    tensors = [TensorSpec.of_size(name, (1, 2, 3, 32), layout) for name, layout in zip(names, layouts, strict=True)]
    steps = [
        StepSpec(f"step{number}", {}, 2, "channels", 1, reads, f"x{number}", None, None)
        for number, reads in enumerate(READS, 1)
    ]
    return assign_buffers(tensors, steps, dict(zip(names, words, strict=True)), {names[0], names[-1]}, may_wait=False)


def test_of_the_buffers_that_are_large_enough_the_last_used_is_taken() -> None:
    found = buffers([1, 100, 90, 80, 100, 60, 70, 1])
    assert found[4] == found[1] and found[5] == found[3]
    assert found[6] == found[4]


def test_a_buffer_that_was_used_in_part_is_as_old_as_the_rest() -> None:
    found = buffers([1, 100, 90, 80, 10, 60, 70, 1])
    assert found[4] == found[1] and found[5] == found[3]
    assert found[6] == found[2]


def test_a_buffer_that_would_have_to_grow_is_taken_last() -> None:
    found = buffers([1, 100, 90, 80, 10, 60, 95, 1])
    assert found[6] == found[1]


def in_turn(words: int, *, may_wait: bool) -> list[int | None]:
    """Buffers of x1 to x5, of so many words, each written from the one before it, line by line: no step waits."""
    names = [f"x{number}" for number in range(7)]
    steps = [
        StepSpec(f"step{number}", {}, 2, "lines", 1, (read,), written, None, None, local_inputs=(read,))
        for number, (read, written) in enumerate(pairwise(names), 1)
    ]
    tensors = [TensorSpec.of_size(name, (1, 2, 3, 32)) for name in names]
    found = assign_buffers(tensors, steps, dict.fromkeys(names, words), {names[0], names[-1]}, may_wait=may_wait)
    return [tensor.buffer for tensor in found[1:-1]]


def test_much_memory_is_worth_a_wait_but_not_for_the_step_before() -> None:
    x1, x2, x3, x4, x5 = in_turn(LARGE, may_wait=True)
    assert (x4, x5) == (x1, x2) and len({x1, x2, x3}) == 3


@pytest.mark.parametrize(("words", "may_wait"), [(100, True), (LARGE, False)])
def test_no_step_waits_for_little_memory_or_where_waits_are_dear(words: int, may_wait: bool) -> None:
    assert len(set(in_turn(words, may_wait=may_wait))) == 5


def test_images_of_different_halos_share_memory_and_are_cleared() -> None:
    found = assigned([1, LARGE, 90, 80, LARGE, 60, 70, 1], {1: 1, 4: 2})
    assert found[4].buffer == found[1].buffer
    assert halos_to_clear(found) == {"x1", "x4"}


def test_an_image_beside_one_without_a_halo_is_cleared() -> None:
    found = assigned([1, LARGE, 90, 80, LARGE, 60, 70, 1], {4: 1})
    assert found[4].buffer == found[1].buffer
    assert halos_to_clear(found) == {"x4"}


def test_images_of_the_same_halo_are_not_cleared() -> None:
    found = assigned([1, LARGE, 90, 80, LARGE, 60, 70, 1], {1: 1, 4: 1})
    assert found[4].buffer == found[1].buffer
    assert not halos_to_clear(found)


def test_little_memory_is_worth_no_clearing() -> None:
    found = assigned([1, 100, 90, 80, 100, 60, 70, 1], {1: 1})
    assert found[4].buffer != found[1].buffer
    assert not halos_to_clear(found)


def test_inputs_keep_the_zeros_of_their_halos() -> None:
    found = assigned([LARGE, 100, LARGE, LARGE, LARGE, LARGE, LARGE, 1], {0: 1})
    assert found[0].buffer not in [tensor.buffer for tensor in found[1:]]
    assert not halos_to_clear(found)
