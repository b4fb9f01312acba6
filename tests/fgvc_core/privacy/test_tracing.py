"""What is shared is computed once, and each use is reported with what it used."""

import pytest
import torch
from torch.nn import functional as F

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.tracing import Trace


def test_a_shared_value_is_derived_once_and_each_use_is_reported():
    weight = torch.nn.Parameter(torch.randn(5, 3))
    table = torch.tensor([2, 0])
    uses = []
    trace = Trace([weight], [table], lambda use, gradient: uses.append((use, gradient)))
    derived = []
    for _ in range(2):
        trace.start(4)
        inputs = torch.randn(4, 3)
        with trace:
            unit = F.normalize(weight, dim=1)[table.flip(0)]
            result = F.linear(inputs, unit)
            result = result + (inputs * 2).sum(dim=1, keepdim=True)
        derived.append(unit)
        torch.autograd.grad(result.sum(), trace.leaves)
    assert derived[0] is derived[1]
    assert trace.derivation(weight) is None
    assert trace.derivation(unit).name == "__getitem__"
    assert trace.derivation(trace.derivation(unit).first()).first() is weight
    assert [(use.name, use.shared, len(use.own)) for use, _ in uses] == [("linear", [unit], 1)] * 2
    assert all(torch.equal(gradient, torch.ones(4, 2)) for _, gradient in uses)


def test_a_value_that_is_changed_in_place_is_used_as_it_was():
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    seen = []
    trace = Trace([weight], [], lambda use, gradient: seen.append((use.own[0].clone(), gradient)))
    trace.start(1)
    with trace:
        values = torch.ones(1, 2)
        same = values
        values *= weight
        values.mul_(weight)
    assert same is values
    assert torch.equal(values, torch.tensor([[4.0, 9.0]]))
    torch.autograd.grad(values.sum(), trace.leaves)
    # From the last use to the first, each with the value before it.
    assert torch.equal(seen[0][0], torch.tensor([[2.0, 3.0]]))
    assert torch.equal(seen[1][0], torch.ones(1, 2))
    assert torch.equal(seen[1][1], torch.tensor([[2.0, 3.0]]))


def test_a_model_that_changes_a_parameter_is_refused():
    weight = torch.nn.Parameter(torch.ones(2))
    with (
        Trace([weight], [], lambda use, gradient: None),
        pytest.raises(PolicyRefusal, match="add_"),
    ):
        weight.add_(1.0)


def test_without_gradients_nothing_is_followed():
    weight = torch.nn.Parameter(torch.ones(2))
    trace = Trace([weight], [], lambda use, gradient: None)
    with trace, torch.no_grad():
        assert not (torch.ones(3, 2) * weight).requires_grad
    assert trace.leaves == []
