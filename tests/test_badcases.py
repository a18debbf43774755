import numpy as np
import pytest
import torch

from model.data.alphabet import Alphabet
from model.training.evaluation import Readings, Samples, by_loss
from sweep.tensorboard.badcases import draw, draw_across, marked


@pytest.mark.parametrize(
    ("read", "true", "expected"),
    [
        ("1234", "1234", "++++"),
        ("1934", "1234", "+-++"),
        ("134", "1234", "+-++"),
        ("12345", "1234", "++++-"),
        ("", "12", "--"),
    ],
)
def test_wrong_and_lost_characters_are_marked(read: str, true: str, expected: str) -> None:
    assert "".join("+" if right else "-" for _, right in marked(read, true)) == expected


def test_the_worst_of_all_images_come_first_with_their_own_loss() -> None:
    losses = torch.tensor([0.5, 9.0, 0.1, 3.0])
    labels = torch.tensor([[1], [2], [3], [4]], dtype=torch.uint8)
    samples = by_loss(Readings(losses, labels, labels)).worst(3)
    assert samples.rows.tolist() == [1, 3, 0]
    assert samples.losses.tolist() == [9.0, 3.0, 0.5]
    assert samples.labels.flatten().tolist() == [2, 4, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_images_are_drawn_four_by_four_in_order(channels: int) -> None:
    images = (torch.arange(16, dtype=torch.uint8) * 15)[:, None, None, None].expand(16, channels, 32, 96)
    rows = torch.zeros(16, 4, dtype=torch.uint8)
    picture = draw(images, Samples(torch.arange(16), rows + 1, rows, torch.ones(16)), Alphabet("01"))
    cell_height, cell_width = picture.shape[0] // 4, picture.shape[1] // 4
    for place in range(16):
        top, left = place // 4 * cell_height, place % 4 * cell_width
        assert (picture[top + 30, left + 60] == place * 15).all()
    red = picture[..., 0].astype(int) - picture[..., 1] > 100
    assert red.any()  # all characters are lost
    assert picture.dtype == np.uint8


def test_the_same_images_are_drawn_once_with_a_line_for_each_trial() -> None:
    images = torch.full((3, 3, 32, 96), 200, dtype=torch.uint8)
    labels = torch.tensor([[1, 2], [2, 1], [1, 1]], dtype=torch.uint8)
    readings = {"0003": labels, "0007": labels.flip(1)}
    one = draw_across(images, labels, [2, 1, 1], {"0003": labels}, Alphabet("ab"))
    two = draw_across(images, labels, [2, 1, 1], readings, Alphabet("ab"))
    assert two.shape == (one.shape[0] + 16, one.shape[1], 3)
    red = two[..., 0].astype(int) - two[..., 1] > 100
    width = two.shape[1] // 4
    assert [bool(red[:, place * width : (place + 1) * width].any()) for place in range(4)] == [True, True, False, False]
