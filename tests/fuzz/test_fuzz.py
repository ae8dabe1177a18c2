"""A slice of the campaigns with fixed seeds; ``python -m tests.fuzz`` runs as many as are asked for."""

import pytest

from . import campaigns


@pytest.mark.parametrize(
    "kind, count, at_least",
    [
        ("annotations", 400, {"used": 60, "cleaned": 30, "refused": 120}),
        ("images", 120, {"used": 20, "used as it is": 5, "refused": 40}),
        ("checkpoints", 60, {"used": 3, "refused": 30}),
    ],
)
def test_every_input_is_used_cleaned_or_refused(kind, count, at_least):
    found = getattr(campaigns, kind)(count, seed=1)
    assert not found.faults, "\n".join(found.faults)
    assert sum(found.counts.values()) == count
    assert all(found.counts[what] >= least for what, least in at_least.items()), found.as_text()


def test_every_configuration_trains_or_is_refused():
    found = campaigns.configurations(60, seed=1, train_every=12)
    assert not found.faults, "\n".join(found.faults)
    assert found.counts["refused"] > 10 and found.counts["read"] > 10, found.as_text()
    assert found.counts["trained"] >= 1


def test_a_fault_is_noticed():
    """The judge of the campaigns, on attempts that it has to tell apart."""
    outcomes = campaigns.Outcomes()
    for attempt in (
        lambda: "used",
        lambda: 1 / 0,
        lambda: (_ for _ in ()).throw(campaigns.InputError("nothing named")),
    ):
        campaigns.judge(outcomes, "x", attempt, "a.json")
    assert outcomes.counts == {"used": 1, "fault": 1, "refused": 1}
    assert len(outcomes.faults) == 2 and "ZeroDivisionError" in outcomes.faults[0]
    assert outcomes.faults[1] == "x: a message that names nothing: 'nothing named'"
