import numpy as np
import pytest

from fgvc_core.training.baselines import train_alone
from fgvc_core.training.examples import Evaluation
from fgvc_core.training.settings import TrainSettings


class Scripted:
    """A learner whose validation scores are given beforehand."""

    def __init__(self, scores, epochs=1):
        self.settings = TrainSettings(epochs=epochs)
        self.scores = [score if isinstance(score, tuple) else (score, 0.0) for score in scores]
        self.stretches = []

    def tensors(self):
        return {"w": np.array([len(self.stretches)], dtype=np.float32)}

    def train_round(self, examples, stretch, purpose):
        assert purpose == "alone"
        self.stretches.append((stretch.round, stretch.rounds))

    def evaluate(self, examples, batch_size):
        if not len(examples):
            return Evaluation(np.zeros((2, 2), dtype=np.int64), 0.0), None
        right, loss = self.scores[len(self.stretches)]
        return Evaluation(np.array([[right, 10 - right], [0, 0]]), loss), None


def run(scores, patience=0, held=(1, 2), epochs=1, start=0):
    """One round for each score; ``start`` is that of the model before round 1."""
    learner = Scripted([start, *scores], epochs)
    rounds = len(scores)
    return learner, train_alone(learner, [0], list(held), rounds, patience, 8, "alone")


def test_the_best_round_by_validation_is_handed_back_with_its_tensors():
    learner, done = run([3, 8, 5, 7])
    assert done.best_round == 2
    assert done.tensors["w"] == 2
    assert learner.stretches == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_of_equal_top1_the_smaller_loss_wins_and_of_equal_both_the_earlier():
    assert run([(5, 4.0), (5, 3.0), (5, 6.0)])[1].best_round == 2
    assert run([(5, 3.0), (5, 3.0)])[1].best_round == 1


def test_a_start_that_no_round_improves_is_the_model_that_is_taken():
    done = run([3, 8, 5], start=9)[1]
    assert (done.best_round, done.tensors["w"], done.passes) == (0, 0, 3)
    learner, done = run([], start=4)
    assert (done.best_round, done.passes, learner.stretches) == (0, 0, [])


def test_patience_ends_it_after_as_many_rounds_as_a_federation():
    # The scores of round 5, the third without a better one, come with the replies of round 6.
    learner, done = run([3, 8, 5, 7, 6, 1, 10], patience=3)
    assert len(learner.stretches) == 6
    assert (done.best_round, done.passes) == (2, 6)
    learner, done = run([3, 8, 5, 7, 9, 6], patience=3)
    assert (len(learner.stretches), done.best_round) == (6, 5)


def test_no_patience_is_set_by_nought():
    assert len(run([9, 1, 1, 1, 1])[0].stretches) == 5


def test_without_validation_the_last_round_is_taken():
    learner, done = run([0, 0, 0], held=(), patience=1)
    assert (done.best_round, done.tensors["w"]) == (3, 3)
    assert len(learner.stretches) == 3


@pytest.mark.parametrize("epochs", [1, 3])
def test_passes_count_epochs(epochs):
    assert run([1, 2], epochs=epochs)[1].passes == 2 * epochs
