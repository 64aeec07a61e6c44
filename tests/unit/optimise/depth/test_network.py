"""The trainable form of a graph with exits: it answers as the file, also with batch norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exits need the extra [optimise]")

from msgspec.structs import replace

from agent.optimise.augment import Augmentation, Normalisation
from agent.optimise.depth.network import Dense, ExitNetwork
from agent.optimise.depth.stages import add_exits, backbone, choose_exits
from agent.optimise.depth.training import accuracies, train_exits
from agent.optimise.recipe import DepthRecipe
from agent.optimise.train import TrainingSettings
from tests.support.float_models import CLASSES, classifier, float_file, pictures
from tests.unit.optimise.depth.test_stages import run

torch.set_num_threads(1)
HEADS_ALONE = DepthRecipe(epochs=0.0)
NORMALISATION = Normalisation(128.0, 64.0)
TRAINING = TrainingSettings(batch=32, augmentation=Augmentation(shift=0, flip=False), normalisation=NORMALISATION)


def cascade() -> bytes:
    content = backbone(float_file(classifier()))
    return add_exits(content, choose_exits(content, 3), grid=2)[0]


def examples(count: int = 96, seed: int = 0) -> tuple[Any, Any]:
    return pictures(count, seed), np.arange(count) % CLASSES


def inputs(count: int = 4) -> Any:
    return NORMALISATION.apply(torch.from_numpy(pictures(count, 7)))


def from_file(content: bytes, given: Any) -> list[Any]:
    """Logits of each exit, [inputs, classes]."""
    rows = [run(content, "serving_default", one[None]) for one in given.permute(0, 2, 3, 1).contiguous().numpy()]
    return [np.concatenate([row[f"logits{number}"] for row in rows]) for number in (1, 2, 3)]


def shaken(network: ExitNetwork) -> ExitNetwork:
    """Heads as after a training."""
    torch.manual_seed(3)
    for head in network.heads:
        torch.nn.init.normal_(head.weight)
        torch.nn.init.normal_(head.bias)
        head.mean.normal_()
        head.deviation.uniform_(0.5, 2.0)
    return network


def test_what_is_written_answers_as_the_module() -> None:
    network, given = shaken(ExitNetwork(cascade())), inputs()
    with torch.no_grad():
        wanted = network.eval()(given)
    for found, one in zip(from_file(network.emit(), given), wanted, strict=True):
        assert np.allclose(found, one, atol=1e-4)


def test_batch_norms_change_no_answer_and_go_back_into_the_weights() -> None:
    network, given = shaken(ExitNetwork(cascade())), inputs(32)
    with torch.no_grad():
        before = network.eval()(given)
        network.unfold(given)
        after = network.eval()(given)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-3)
    for found, one in zip(from_file(network.emit(), given[:4]), after, strict=True):
        assert np.allclose(found, one[:4], atol=1e-3)


def test_a_layer_on_features_of_one_scale_answers_as_before() -> None:
    torch.manual_seed(0)
    dense, given = Dense(5, 3), torch.randn(8, 5) * 7 + 40
    torch.nn.init.normal_(dense.weight)
    before = dense(given)
    dense.set_features(given.mean(0), given.std(0))
    assert torch.allclose(before, dense(given), atol=1e-3)
    weight, bias = dense.folded()
    assert torch.allclose(before, given @ weight.T + bias, atol=1e-3)


def test_frozen_heads_learn_and_the_backbone_keeps_its_bytes() -> None:
    content = cascade()
    network = ExitNetwork(content)
    found = train_exits(network, examples(), examples(64, 1), HEADS_ALONE, TRAINING)
    assert min(found.accuracy[:2]) > 0.9
    given = inputs()
    after, before = from_file(network.emit(), given), from_file(content, given)
    assert np.array_equal(after[2], before[2])
    assert np.abs(after[0] - before[0]).max() > 0.1


def test_joint_training_teaches_the_last_exit_too() -> None:
    network = ExitNetwork(cascade())
    data, test = examples(512), examples(64, 1)
    before = accuracies(network, *test, NORMALISATION)[-1]
    trained = train_exits(network, data, test, DepthRecipe(epochs=4.0), TRAINING)
    assert before < 0.5
    assert trained.is_joint
    assert trained.accuracy == accuracies(network, *test, NORMALISATION)
    assert min(trained.accuracy) > 0.9
    assert trained.content == network.emit()


def test_joint_training_that_does_not_help_is_not_kept() -> None:
    network, test = ExitNetwork(cascade()), examples(64, 1)
    alone = train_exits(ExitNetwork(cascade()), examples(), test, HEADS_ALONE, TRAINING)
    wild = replace(TRAINING, learning_rate=1e4)
    trained = train_exits(network, examples(), test, DepthRecipe(epochs=1.0), wild)
    assert not trained.is_joint
    assert (trained.content, trained.accuracy) == (alone.content, alone.accuracy)


@pytest.mark.parametrize("epochs", [0.0, 1.0])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Any, epochs: float) -> None:
    def trained(stop: int) -> bytes:
        network, count = ExitNetwork(cascade()), [0]

        def progress(_: str) -> None:
            count[0] += 1
            if count[0] == stop:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop >= 0)
        folder.mkdir(exist_ok=True)
        return train_exits(
            network,
            examples(),
            examples(64, 1),
            DepthRecipe(epochs=epochs),
            TRAINING,
            folder=folder,
            progress=progress,
        ).content

    whole = trained(-1)
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            trained(stop)
    assert trained(10_000) == whole
