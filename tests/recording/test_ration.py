"""Work in the loop keeps within its share, by a clock that the test holds."""

from __future__ import annotations

import random

import pytest

from gradscope.recording.ration import GUESS, SHARE, Ration


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        """What time it is."""
        return self.now

    def work(self, seconds):
        """Work that takes so long."""

        def run():
            self.now += seconds

        return run


def test_nothing_is_due_before_its_guess_fits():
    """Nor at the very beginning."""
    clock = Clock()
    ration = Ration(clock)
    assert not ration.due()
    clock.now += 0.99 * GUESS / SHARE
    assert not ration.due()
    clock.now += 0.02 * GUESS / SHARE
    assert ration.due()


def test_pieces_that_grow_stay_within_one_per_cent():
    """Each up to a third longer than the last, over a long training of uneven steps."""
    clock, dice = Clock(), random.Random(0)
    began, spent, piece, pieces = clock.now, 0.0, GUESS, 0
    ration = Ration(clock)
    for _ in range(200_000):
        clock.now += dice.uniform(0.001, 0.2)
        if ration.due():
            piece *= dice.uniform(1.0, 1.33) if piece < 5 else 1.0
            spent, pieces = spent + piece, pieces + 1
            ration.spend(clock.work(piece))
            assert spent <= 0.01 * (clock.now - began)
    assert pieces > 10
    assert spent > 0.2 * SHARE * (clock.now - began)


def test_work_that_raises_is_counted():
    """Or it would be due at once again."""
    clock = Clock()
    ration = Ration(clock)
    clock.now += 1.5 * GUESS / SHARE
    assert ration.due()

    def fails():
        clock.now += 2 * GUESS
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        ration.spend(fails)
    assert not ration.due()
    clock.now += 2.5 * GUESS / SHARE
    assert ration.due()
