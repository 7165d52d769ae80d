"""From logits to probabilities to classes."""

import pytest
import torch

from eoseg.deciding import decide, probabilities

HALF_STEP = 1 / 8192


def logits(classes, dtype=torch.float32):
    return (torch.randn(2, classes, 9, 7, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_probabilities_are_multiples_of_1_in_4096_next_to_the_exact_ones(dtype, classes, temperature):
    given = logits(classes, dtype)
    found, scaled = probabilities(given, classes == 1, temperature), given.double() / temperature
    assert found.dtype == torch.float32 and torch.equal(found * 4096, (found * 4096).round())
    exact = torch.sigmoid(scaled) if classes == 1 else torch.softmax(scaled, 1)
    assert (found - exact).abs().max() <= HALF_STEP + 1e-6
    assert torch.equal(given, logits(classes, dtype))  # rounding happens in place, but not in the logits


def test_binary_probability_is_of_class_1_by_hand():
    found = probabilities(torch.tensor([-100.0, 0.0, 100.0, 1.0986123]).reshape(1, 1, 1, 4), True)
    assert found.flatten().tolist() == [0, 0.5, 1, 0.75]  # sigmoid(ln 3) = 3/4


def test_a_temperature_above_1_makes_less_sure_and_changes_no_class():
    given = logits(4)
    cold, usual, hot = (probabilities(given, False, temperature) for temperature in (0.5, 1.0, 4.0))
    assert cold.max(1).values.mean() > usual.max(1).values.mean() > hot.max(1).values.mean()
    clear = usual.topk(2, 1).values.diff(dim=1)[:, 0].abs() > 0.01  # rounding may bring those nearer together
    assert clear.float().mean() > 0.9 and torch.equal(hot.argmax(1)[clear], usual.argmax(1)[clear])


def test_the_most_probable_class_and_its_probability_are_taken():
    probability = torch.tensor([[0.25, 0.5], [0.625, 0.125], [0.125, 0.375]]).reshape(3, 1, 2)
    classes, confidence = decide(probability, threshold=0.9)  # binary networks alone heed it
    assert classes.dtype == torch.int64 and classes.tolist() == [[1, 0]] and confidence.tolist() == [[0.625, 0.5]]


@pytest.mark.parametrize("threshold", [0.5, 0.25, 1229 / 4096, 0.0, 1.0])
def test_class_1_begins_exactly_at_the_threshold(threshold):
    step = round(threshold * 4096)
    probability = torch.tensor([max(step - 1, 0), step, min(step + 1, 4096)]).reshape(1, 1, 3) / 4096
    classes, confidence = decide(probability, threshold)
    assert classes.tolist() == [[int(threshold == 0), 1, int(threshold < 1) or 1]]
    one = probability[0]
    assert torch.equal(confidence, torch.where(classes == 1, one, 1 - one))


def test_confidence_is_that_of_the_class_called_even_below_a_half():
    classes, confidence = decide(torch.tensor([[[0.25, 0.875]]]), 0.2)
    assert classes.tolist() == [[1, 1]] and confidence.tolist() == [[0.25, 0.875]]
    classes, confidence = decide(torch.tensor([[[0.25, 0.875]]]), 0.9)
    assert classes.tolist() == [[0, 0]] and confidence.tolist() == [[0.75, 0.125]]


@pytest.mark.parametrize("classes", [1, 4])
def test_a_single_map_and_a_batch_of_maps_are_decided_alike(classes):
    found = probabilities(logits(classes), classes == 1)
    batch = decide(found, 0.4)
    assert batch[0].shape == (2, 9, 7)
    for i, one in enumerate(found):
        assert all(torch.equal(part[i], alone) for part, alone in zip(batch, decide(one, 0.4)))
