"""What is likely where the times of halves are uncertain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_coexec.planning.chances import NO_TIME, Time, chance_of_gain, usual_factor

UNCERTAIN = Time(100.0, 80.0, 125.0)
SURE = Time.sure(100.0)


def test_four_of_five_times_are_in_the_interval():
    drawn = UNCERTAIN.at(np.random.default_rng(0).normal(size=20_000))
    assert np.mean((drawn >= UNCERTAIN.low_us) & (drawn <= UNCERTAIN.high_us)) == pytest.approx(0.8, abs=0.01)
    assert np.median(drawn) == pytest.approx(100.0, rel=0.01)
    assert (SURE.at(np.array([-3.0, 0.0, 3.0])) == 100.0).all()


def test_of_two_uncertain_halves_one_is_usually_late():
    drawn = UNCERTAIN.at(np.random.default_rng(0).normal(size=(20_000, 2)))
    assert usual_factor(UNCERTAIN, UNCERTAIN) == pytest.approx(drawn.max(axis=1).mean() / 100, rel=0.01)
    assert usual_factor(SURE, SURE) == usual_factor(NO_TIME, NO_TIME) == 1.0
    assert usual_factor(UNCERTAIN, Time.sure(10.0)) < 1.02, "a half that is done long before does not matter"


def test_a_gain_is_certain_or_not_where_nothing_is_uncertain():
    assert chance_of_gain((Time.sure(45.0), Time.sure(50.0)), 4.0, SURE, 0) == 1.0
    assert chance_of_gain((Time.sure(45.0), Time.sure(97.0)), 4.0, SURE, 0) == 0.0


def test_what_one_side_is_off_by_concerns_its_half_and_the_whole_layer_alike():
    half = Time(50.0, 25.0, 100.0)
    alone = Time(100.0, 50.0, 200.0)
    assert chance_of_gain((half, Time.sure(1.0)), 0.0, alone, 0) == 1.0
    assert 0.6 < chance_of_gain((Time.sure(1.0), half), 0.0, alone, 0) < 0.9


@given(st.floats(0.0, 60.0), st.floats(0.0, 60.0))
def test_dearer_synchronisation_makes_a_gain_no_likelier(less, more):
    less, more = sorted((less, more))
    halves = UNCERTAIN, Time(90.0, 85.0, 99.0)
    alone = Time(150.0, 140.0, 160.0)
    assert chance_of_gain(halves, more, alone, 1) <= chance_of_gain(halves, less, alone, 1)
