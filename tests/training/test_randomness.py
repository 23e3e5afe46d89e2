from __future__ import annotations

import io
import random


def drawn() -> tuple[float, float, float]:
    import numpy as np
    import torch

    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_generators_go_on_where_they_were():
    import torch

    from cap.training.randomness import random_state, set_random_state

    drawn()
    state = random_state(torch.device("cpu"))
    expected = drawn()
    drawn()
    set_random_state(state, torch.device("cpu"))
    assert drawn() == expected


def test_state_is_read_without_executing_anything():
    import torch

    from cap.training.randomness import random_state, set_random_state

    random.gauss(0.0, 1.0)  # leaves a second value behind, which is part of the state
    file = io.BytesIO()
    torch.save(random_state(torch.device("cpu")), file)
    expected = (random.gauss(0.0, 1.0), drawn())
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True), torch.device("cpu"))
    assert (random.gauss(0.0, 1.0), drawn()) == expected
