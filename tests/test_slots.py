"""Which tensors share a slot."""

from tvm_coexec.runtime.manifest import StepSpec, TensorSpec
from tvm_coexec.slots import assign_slots

READS = [("x0",), ("x1",), ("x1", "x2"), ("x2", "x3"), ("x4",), ("x5",), ("x6",)]
"""What the steps read, the first of which writes x1. When x6 is written, the memory of x4 and x2 is free."""


def slots(words: list[int]) -> list[int | None]:
    """Slots of x0, x1 …, which need so many words."""
    names = [f"x{number}" for number in range(len(words))]
    tensors = [TensorSpec.of_size(name, (1, 32), None) for name in names]
    steps = [
        StepSpec(f"step{number}", {}, 2, "channels", 1, reads, f"x{number}", None, None)
        for number, reads in enumerate(READS, 1)
    ]
    found = assign_slots(tensors, steps, dict(zip(names, words, strict=True)), {names[0], names[-1]})
    return [tensor.slot for tensor in found]


def test_of_the_slots_that_are_large_enough_the_last_used_is_taken() -> None:
    found = slots([1, 100, 90, 80, 100, 60, 70, 1])
    assert found[4] == found[1] and found[5] == found[3]
    assert found[6] == found[4]


def test_a_slot_that_was_used_in_part_is_as_old_as_the_rest() -> None:
    found = slots([1, 100, 90, 80, 10, 60, 70, 1])
    assert found[4] == found[1] and found[5] == found[3]
    assert found[6] == found[2]


def test_a_slot_that_would_have_to_grow_is_taken_last() -> None:
    found = slots([1, 100, 90, 80, 10, 60, 95, 1])
    assert found[6] == found[1]
