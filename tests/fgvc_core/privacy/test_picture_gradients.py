"""Each rule gives the gradients by picture that plain differentiation gives."""

import pytest
import torch
from torch.nn import functional as F

from fgvc_core.errors import PolicyRefusal
from fgvc_core.privacy.picture_gradients import by_picture, to_parameters
from fgvc_core.privacy.tracing import Trace

N = 6
TABLE = torch.tensor([3, 1, 1])


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def expanded(x, w):
    return torch.cat([w.expand(len(x), -1, -1), x], dim=1)


def standardized(x, w):
    flat = w.reshape(1, w.shape[0], -1)
    return F.conv2d(x, F.batch_norm(flat, None, None, training=True, eps=1e-6).reshape_as(w))


def windows(x, w):
    """Four windows of each picture side by side in the first dimension."""
    return F.linear(x.reshape(4 * N, -1, 3), w).reshape(N, 4, -1)


CASES = {
    "linear": ((N, 3), (5, 3), F.linear),
    "linear of positions": ((N, 7, 3), (5, 3), F.linear),
    "linear of windows": ((N, 8, 3), (5, 3), windows),
    "matmul": ((N, 7, 3), (3, 5), torch.matmul),
    "conv1d": ((N, 2, 9), (3, 2, 3), lambda x, w: F.conv1d(x, w, padding=1)),
    "conv2d": ((N, 2, 9, 8), (3, 2, 3, 2), lambda x, w: F.conv2d(x, w, stride=2, padding=(1, 0))),
    "conv2d of large maps": ((N, 4, 40, 40), (3, 4, 5, 5), F.conv2d),
    "depthwise": ((N, 4, 7, 7), (4, 1, 3, 3), lambda x, w: F.conv2d(x, w, groups=4)),
    "dilated": ((N, 2, 7, 7), (4, 2, 2, 2), lambda x, w: F.conv2d(x, w, dilation=2)),
    "layer norm": ((N, 5, 4), (4,), lambda x, w: F.layer_norm(x, (4,), w)),
    "group norm": ((N, 4, 3, 3), (4,), lambda x, w: F.group_norm(x, 2, w)),
    "scale": ((N, 4, 3, 3), (4, 1, 1), lambda x, w: x * w),
    "exponent": ((N, 4), (), lambda x, w: x.abs().pow(w)),
    "positions": ((N, 4, 3), (1, 4, 3), torch.add),
    "token": ((N, 4, 3), (1, 1, 3), expanded),
    "standardized": ((N, 2, 5, 5), (3, 2, 3, 3), standardized),
    "normalized": ((N, 3), (5, 3), lambda x, w: F.linear(x, F.normalize(w, dim=1))),
    "table": ((N, 4), (9, 4), lambda x, w: x + w[TABLE].sum(dim=0)),
    "unknown": ((N, 3), (4, 3), lambda x, w: torch.cdist(x[:, None], w[None])),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_gives_each_pictures_gradient(case):
    torch.manual_seed(4)
    of_inputs, of_weight, function = CASES[case]
    inputs, weight = normal(*of_inputs), torch.nn.Parameter(normal(*of_weight))
    found = torch.zeros(N, *of_weight, dtype=torch.float64)

    def used(use, gradient):
        for shared, gradients in by_picture(use, gradient, N):
            for parameter, pulled in to_parameters(trace, shared, gradients):
                assert parameter is weight
                found.add_(pulled)

    trace = Trace([weight], [TABLE], used)
    trace.start(N)
    with trace:
        result = function(inputs, weight)
        losses = result.tanh().flatten(1).sum(dim=1)
    assert torch.autograd.grad(losses.sum(), [*trace.leaves, weight], allow_unused=True)[-1] is None
    for number, loss in enumerate(function(inputs, weight).tanh().flatten(1).sum(dim=1)):
        (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
        torch.testing.assert_close(found[number], expected)


def test_a_result_that_is_not_arranged_by_picture_is_refused():
    weight = torch.nn.Parameter(normal(3))
    trace = Trace([weight], [], lambda use, gradient: list(by_picture(use, gradient, N)))
    trace.start(N)
    with trace:
        total = (normal(N, 3).sum(dim=0)[:2] * weight[:2]).sum()
    with pytest.raises(PolicyRefusal, match="first dimension"):
        torch.autograd.grad(total, trace.leaves)
