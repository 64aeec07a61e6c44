"""What a pruned module learns from the one that it is made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pruning needs the extra [optimise]")
from msgspec.structs import replace

from agent.errors import ModelError
from agent.optimise.augment import Augmentation
from agent.optimise.pruning.channels import ChannelPruning
from agent.optimise.pruning.connections import ConnectionPruning
from agent.optimise.pruning.rounds import blended, to_learn
from agent.optimise.train import evaluate, predict
from tests.unit.optimise.pruning.test_channels import SETTINGS, dense, trained
from tests.unit.optimise.pruning.test_connections import TRAINING, examples

__all__ = ["trained"]
PLAIN = replace(TRAINING, augmentation=Augmentation(flip=False), temperature=2.0, label_smoothing=0.3)


def test_without_a_teacher_the_labels_are_learned(trained: Any) -> None:
    pictures, labels = examples()
    assert to_learn(dense(trained), pictures, labels, PLAIN, 0.0) == (labels, None)


def test_a_share_of_the_answers_is_learned_beside_smoothed_labels(trained: Any) -> None:
    module, (pictures, labels) = dense(trained), examples()
    answers = (predict(module, pictures, PLAIN.normalisation) / 2.0).softmax(1)
    smooth = torch.nn.functional.one_hot(torch.from_numpy(labels), 3) * 0.7 + 0.1
    torch.testing.assert_close(blended(module, pictures, labels, PLAIN, 0.25), 0.75 * smooth + 0.25 * answers)
    torch.testing.assert_close(blended(module, pictures, labels, PLAIN, 1.0), answers)


def test_where_pictures_are_mirrored_the_answers_to_both_count(trained: Any) -> None:
    module, (pictures, labels) = dense(trained), examples()
    settings = replace(PLAIN, augmentation=Augmentation(flip=True))
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    wanted = blended(module, pictures, labels, settings, 1.0)
    torch.testing.assert_close(wanted, blended(module, mirrored, labels, settings, 1.0))
    assert not torch.allclose(wanted, blended(module, pictures, labels, PLAIN, 1.0))


def test_the_loss_of_a_batch_is_the_cross_entropy_to_its_rows(trained: Any) -> None:
    module, (pictures, labels) = dense(trained), examples()
    wanted = blended(module, pictures, labels, PLAIN, 0.5)
    rows, objective = to_learn(module, pictures, labels, PLAIN, 0.5)
    assert objective is not None
    assert rows.tolist() == list(range(len(labels)))
    outputs = torch.tensor([[3.0, -3.0, 0.0], [1.0, 1.0, 2.0]])
    found = objective(outputs, None, torch.tensor([2, 1]))
    logs = (outputs / PLAIN.temperature).log_softmax(1)
    assert float(found) == pytest.approx(float(-(logs * wanted[[2, 1]]).sum(1).mean()))


def test_a_class_that_the_module_does_not_have_is_an_error(trained: Any) -> None:
    pictures, labels = examples()
    with pytest.raises(ModelError, match="there is a class 3, but the module has 3"):
        blended(dense(trained), pictures, labels + 1, PLAIN, 0.5)


@pytest.mark.parametrize("kind", [ChannelPruning, ConnectionPruning])
def test_channels_and_connections_go_with_a_teacher(trained: Any, kind: Any) -> None:
    settings = replace(SETTINGS, teacher=0.5, structured=kind is ChannelPruning)
    run = kind(dense(trained), *examples(), settings, TRAINING)
    run.run()
    assert evaluate(run.module, *examples(seed=1)) > 0.85
