"""Four engines, one sum: equal to each other and to a computation by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvc_core.losses.base import SmoothedCrossEntropy
from fgvc_core.models.heads import CosineHead, LinearHead
from fgvc_core.privacy.batched import BatchedEngine
from fgvc_core.privacy.gradients import ClosedFormEngine, HeadView, LoopEngine, UnitBatch
from fgvc_core.privacy.hooks import OpacusEngine

N, D, K = 14, 6, 4


class Setting:
    """A head on features, and the engines over it."""

    def __init__(self, kind, smoothing=0.0, dtype=torch.float64, views=1, at_once=1 << 30):
        torch.manual_seed(3)
        self.features = torch.randn(N, D, dtype=dtype)
        self.labels = torch.randint(K, (N,))
        self.head = LinearHead(D, K) if kind == "linear" else CosineHead(D, K, 8.0)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        self.head.to(dtype).train()
        self.loss = SmoothedCrossEntropy(smoothing)
        self.parameters = list(self.head.parameters())
        self.calls = []
        self.loop = LoopEngine(self.parameters, self.losses, views, at_once)
        self.opacus = OpacusEngine(self.head, self.parameters, self.losses, views, at_once)
        self.batched = BatchedEngine(self.head, self.parameters, self.losses, views, at_once)
        self.closed = ClosedFormEngine(self.view, self.features, self.labels)

    def losses(self, positions):
        self.calls.append(len(positions))
        return self.loss.per_example(self.head(self.features[positions]), self.labels[positions])

    def view(self):
        bias = getattr(self.head, "bias", None)
        return HeadView(
            self.head.weight, bias, getattr(self.head, "scale", None), self.loss.smoothing
        )

    def engines(self):
        return {
            "loop": self.loop,
            "batched": self.batched,
            "opacus": self.opacus,
            "closed-form": self.closed,
        }

    def by_hand(self, batch, bound):
        """From the loss itself, in float64, one unit at a time, no engine's code."""
        weight = self.head.weight.detach().double().requires_grad_()
        leaves = [weight]
        if isinstance(self.head, LinearHead):
            leaves.append(self.head.bias.detach().double().requires_grad_())
        total = torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=torch.float64)
        for unit in range(batch.count):
            own = torch.zeros_like(total)
            for at in batch.positions_B[batch.units_B == unit]:
                x = self.features[at].double()
                if len(leaves) == 2:
                    logits = weight @ x + leaves[1]
                else:
                    rows = weight / weight.square().sum(dim=1, keepdim=True).sqrt()
                    logits = 8.0 * rows @ (x / x.square().sum().sqrt())
                target = torch.full((K,), self.loss.smoothing / K, dtype=torch.float64)
                target[self.labels[at]] += 1 - self.loss.smoothing
                loss = -(target * torch.log_softmax(logits, 0)).sum()
                gradients = torch.autograd.grad(loss, leaves)
                own += torch.cat([g.reshape(-1) for g in gradients])
            norm = float(own.norm())
            if np.isfinite(norm):
                total += own * min(1.0, bound / norm) if norm else own
        return total


# Units of one and of several images, one of them (3) drawn and empty, in no order.
UNITS = UnitBatch(np.array([3, 9, 0, 5, 7, 1, 12]), np.array([2, 0, 1, 2, 2, 4, 0]), 5)
IMAGES = UnitBatch(np.arange(8), np.arange(8), 8)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("batch", [UNITS, IMAGES], ids=["subjects", "images"])
@pytest.mark.parametrize("bound", [0.05, 1.0, 1e6])
def test_all_engines_give_the_sum_by_hand(kind, smoothing, batch, bound):
    setting = Setting(kind, smoothing)
    expected = setting.by_hand(batch, bound)
    unclipped = set()
    for name, engine in setting.engines().items():
        found = engine.clipped_sum(batch, bound)
        assert found.total_D.dtype == torch.float64
        assert float((found.total_D - expected).abs().max()) < 1e-9 * max(1.0, bound), name
        unclipped.add(found.unclipped)
    assert len(unclipped) == 1
    assert bound == 1e6 or unclipped.pop() < batch.count


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_in_float32_they_agree_to_a_millionth(kind):
    setting = Setting(kind, 0.1, torch.float32)
    expected = setting.by_hand(UNITS, 1.0)
    for name, engine in setting.engines().items():
        found = engine.clipped_sum(UNITS, 1.0).total_D
        assert float((found - expected).abs().max()) < 1e-6, name


def test_views_are_averaged_within_their_unit_and_physical_batches_change_nothing():
    class Viewed(Setting):
        """Every call sees other views: numbered, so that all engines can see the same."""

        def losses(self, positions):
            values = []
            for position in positions.tolist():
                # How often this picture was seen before in this sum decides the view.
                number = self.views_seen.get(position, 0)
                self.views_seen[position] = number + 1
                values.append(self.features[position] * (1 + 0.3 * number))
            return self.loss.per_example(self.head(torch.stack(values)), self.labels[positions])

    found = {}
    for at_once in (1, 2, 5, 1 << 30):
        setting = Viewed("linear", 0.1, views=3, at_once=at_once)
        for name in ("loop", "batched", "opacus"):
            engine = setting.engines()[name]
            setting.views_seen = {}
            found[name, at_once] = engine.clipped_sum(UNITS, 0.7)
            # A picture that fills a piece up is looked at again, and counts no further.
            assert min(setting.views_seen.values()) == 3
            assert name != "loop" or set(setting.views_seen.values()) == {3}
    sums = torch.stack([summed.total_D for summed in found.values()])
    assert float((sums - sums[0]).abs().max()) < 1e-12
    assert len({summed.unclipped for summed in found.values()}) == 1

    # And by hand: the mean of three views' gradients, summed within the unit, then clipped.
    setting = Setting("linear", 0.1)
    expected = torch.zeros_like(sums[0])
    for unit in range(UNITS.count):
        own = torch.zeros_like(expected)
        for at in UNITS.positions_B[UNITS.units_B == unit]:
            for number in range(3):
                logits = setting.head(setting.features[at] * (1 + 0.3 * number))[None]
                loss = setting.loss(logits, setting.labels[at][None]) / 3
                gradients = torch.autograd.grad(loss, setting.parameters)
                own += torch.cat([g.reshape(-1) for g in gradients])
        expected += own * min(1.0, 0.7 / float(own.norm())) if own.any() else own
    assert float((sums[0] - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("count", [0, 3])
def test_an_empty_draw_gives_zeros_without_a_forward(count):
    empty = UnitBatch(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), count)
    for kind in ("linear", "cosine"):
        setting = Setting(kind)
        for engine in setting.engines().values():
            found = engine.clipped_sum(empty, 1.0)
            assert found.total_D.shape == (sum(p.numel() for p in setting.parameters),)
            assert not found.total_D.any()
            assert found.unclipped == count
        assert setting.calls == []


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_unit_that_is_not_finite_counts_as_zero_and_the_sum_says_nothing_of_it(kind, broken):
    # A server that aims weights at one picture would read from the sum whether it is there.
    setting = Setting(kind, 0.1, torch.float32)
    others = UnitBatch(np.array([0, 1, 2, 4]), np.array([0, 0, 1, 2]), 3)
    with_it = UnitBatch(np.array([0, 1, 9, 2, 4, 5]), np.array([0, 0, 1, 2, 3, 1]), 4)
    setting.features[9] = broken
    for name, engine in setting.engines().items():
        found = engine.clipped_sum(with_it, 1.0)
        assert torch.isfinite(found.total_D).all(), name
        # A cosine head takes what has no length as zero: the unit's other picture counts then.
        if broken != 3e38 and (kind == "linear" or np.isinf(broken)):
            expected = engine.clipped_sum(others, 1.0)
            assert float((found.total_D - expected.total_D).abs().max()) < 1e-12, name
            assert found.unclipped == expected.unclipped


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e38])
def test_weights_that_are_not_finite_leave_a_finite_sum(kind, poison):
    setting = Setting(kind, 0.1, torch.float32)
    with torch.no_grad():
        setting.head.weight[1, 2] = poison
    for engine in setting.engines().values():
        assert torch.isfinite(engine.clipped_sum(UNITS, 1.0).total_D).all()


# Powers of two: rows stay exactly along what they are aimed at.
lengths = st.integers(-120, 100)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["linear", "cosine"]),
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.lists(lengths, min_size=K, max_size=K),
    st.floats(-4, 4),
    st.integers(0, 3),
    st.booleans(),
)
def test_one_unit_moves_the_sum_by_the_bound_at_most_whatever_the_server_sends(
    kind, owners, powers, feature_power, gone, aimed
):
    setting = Setting(kind, 0.1, torch.float32)
    with torch.no_grad():
        setting.features *= 10.0**feature_power
        if aimed:
            # Rows along a picture's own features: what cancels then leaves rounding alone.
            setting.head.weight.copy_(setting.features[:K])
        setting.head.weight *= torch.tensor([2.0**power for power in powers])[:, None]
    _, units = np.unique(owners, return_inverse=True)
    positions = np.arange(len(units), dtype=np.int64)
    gone = gone % (units.max() + 1)
    kept = units != gone
    bound = 1e-3
    for name in ("closed-form", "loop", "batched"):
        engine = setting.engines()[name]
        whole = engine.clipped_sum(UnitBatch(positions, units, units.max() + 1), bound)
        less = engine.clipped_sum(
            UnitBatch(positions[kept], np.unique(units[kept], return_inverse=True)[1],
                      int(units.max())), bound,
        )  # fmt: skip
        moved = float((whole.total_D - less.total_D).norm())
        assert torch.isfinite(whole.total_D).all()
        assert moved <= bound * (1 + 2.0**-20), name


def test_a_cosine_row_along_a_picture_does_not_hide_its_norm():
    # A row of length 1e-12 makes the parts of the gradient huge, and along the picture itself
    # they cancel but for rounding: the norm must not be taken from what is left.
    setting = Setting("cosine", 0.1, torch.float32)
    for at in range(N):
        row = int(setting.labels[at])
        with torch.no_grad():
            # The other rows are so long that their part of the gradient is nothing.
            setting.head.weight.copy_(torch.randn(K, D) * 2.0**40)
            setting.head.weight[row] = setting.features[at] * 2.0**-41
        batch = UnitBatch(np.array([at]), np.array([0]), 1)
        for bound in (1e-6, 1e-3, 1.0):
            for name, engine in setting.engines().items():
                norm = float(engine.clipped_sum(batch, bound).total_D.norm())
                assert norm <= bound * (1 + 1e-6), (name, at)


def test_the_model_is_read_anew_at_each_sum():
    setting = Setting("linear")
    before = {name: e.clipped_sum(UNITS, 1.0).total_D for name, e in setting.engines().items()}
    with torch.no_grad():
        setting.head.weight.mul_(0.1)
    for name, engine in setting.engines().items():
        after = engine.clipped_sum(UNITS, 1.0).total_D
        assert float((after - before[name]).abs().max()) > 1e-3
        assert float((after - setting.by_hand(UNITS, 1.0)).abs().max()) < 1e-9


def test_a_parameter_that_the_loss_does_not_use_has_a_gradient_of_zero():
    setting = Setting("linear")
    unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    loop = LoopEngine([*setting.parameters, unused], setting.losses)
    found = loop.clipped_sum(IMAGES, 1.0).total_D
    assert not found[-3:].any()
    assert float((found[:-3] - setting.by_hand(IMAGES, 1.0)).abs().max()) < 1e-9


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_pictures_of_one_unit_that_all_but_cancel_do_not_round_the_others(kind):
    # Two pictures of one subject whose gradients are 1e8 times their sum. Rounded together with
    # the other units' parts they would move these by far more than the noise allows for.
    setting = Setting(kind, 0.0)
    with torch.no_grad():
        setting.head.weight.mul_(1e-3)
        setting.features[0] *= 1e6
        setting.features[1] = setting.features[0] + 1e-2 * torch.randn(D, dtype=torch.float64)
    opposite = 0 if int(setting.labels[0]) else 1
    setting.labels[1] = opposite
    if kind == "linear":
        with torch.no_grad():
            setting.head.weight.zero_()
            setting.head.bias.zero_()
            # Both classes alike for sure: the two gradients are opposite.
            setting.head.bias[[int(setting.labels[0]), opposite]] = 60.0
    # In the middle, where the others' sum is rounded with each of the two.
    whole = UnitBatch(np.arange(12), np.array([5, 5, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10]), 11)
    less = UnitBatch(np.arange(2, 12), np.arange(10), 10)
    alone = UnitBatch(np.array([0, 1]), np.array([0, 0]), 1)
    for bound in (1e-6, 1e-3):
        of = setting.closed.clipped_sum
        moved = of(whole, bound).total_D - of(less, bound).total_D
        own = of(alone, bound).total_D
        assert float(own.norm()) <= bound * (1 + 2.0**-40)
        assert float((moved - own).norm()) <= bound * 2.0**-40
