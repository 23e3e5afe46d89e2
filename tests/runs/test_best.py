from __future__ import annotations

from cap.runs.best import best_at_target, validations

LEVELS = [(10, 0.4, 0.88), (20, 0.9, 0.80), (30, 0.9, 0.83), (40, 0.9, 0.83), (50, 0.9, 0.82)]


def test_best_at_target_leaves_out_what_was_reached_with_more_weights():
    levels = [{"step": s, "target": t, "sparsity": t, "scores": {"accuracy": a}} for s, t, a in LEVELS]
    found = validations({"metric": "accuracy", "levels": levels})
    assert [found[key]["step"] for key in ("best", "best_at_target", "last")] == [10, 30, 50]
    assert best_at_target({"metric": "accuracy", "levels": levels}) == 0.83
    assert best_at_target({"metric": "accuracy", "validations": found}) == 0.83
    assert best_at_target({"metric": "accuracy"}) is None


def test_best_is_not_one_of_other_rows():
    scores, shares = [(10, 0.9), (20, 0.8), (30, 0.7)], [0.25, 1.0, 1.0]
    levels = [{"step": step, "target": 0.97, "scores": {"accuracy": score}} for step, score in scores]
    levels = [level | {"share": share} for level, share in zip(levels, shares, strict=True)]
    found = validations({"metric": "accuracy", "levels": levels})
    assert [found[key]["step"] for key in ("best", "best_at_target", "last")] == [20, 20, 30]
