"""The loss of a network with several exits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [optimise]")

from agent.optimise.depth.training import exit_loss


def test_the_last_exit_learns_from_labels_alone_and_teaches_the_others() -> None:
    labels = torch.tensor([0, 1])
    early = torch.zeros(2, 3, requires_grad=True)
    last = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 4.0]], requires_grad=True)
    exit_loss([early, last], labels, taught=1.0).backward()
    own = torch.autograd.grad(torch.nn.functional.cross_entropy(last, labels), last)[0]
    assert torch.allclose(last.grad, own), "the teacher does not follow its pupils"
    assert early.grad[1].argmin() == 2, "a pupil follows the teacher's wrong answer"


def test_without_a_teacher_it_is_the_cross_entropy_of_all_exits() -> None:
    torch.manual_seed(0)
    logits, labels = [torch.randn(4, 3) for _ in range(3)], torch.tensor([0, 1, 2, 0])
    wanted = sum(torch.nn.functional.cross_entropy(one, labels) for one in logits)
    assert torch.allclose(exit_loss(logits, labels, taught=0.0), torch.as_tensor(wanted))


def test_exits_that_answer_as_the_last_one_lose_nothing_by_its_answers() -> None:
    torch.manual_seed(1)
    same, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.allclose(exit_loss([same, same], labels, taught=1.0), exit_loss([same], labels), atol=1e-6)
