"""The comparison of objectives: its table, and that what was measured is not measured again."""

import json

from bench.calibration import Results, table


def test_table():
    found = {
        "teacher": {"pixels": 0.0, "fd": 20.0},
        "ipndm 3": {"pixels": 0.5, "fd": 90.0},
        "pixels 3 0": {"pixels": 0.1, "fd": 40.0},
        "pixels 3 1": {"pixels": 0.3, "fd": 50.0},
        "pixels between 3 0": {"pixels": 0.2, "fd": 45.0},
    }
    assert table(found).splitlines()[2:] == [
        "| teacher | 0 | 20 |",
        "| ipndm 3 | 0.5 | 90 |",
        "| pixels 3 | 0.2 ± 0.14 | 45 ± 7.1 |",
        "| pixels between 3 | 0.2 | 45 |",
    ]


def test_results_are_kept(tmp_path):
    path = tmp_path / "r.json"
    Results(path).get("a", lambda: {"fd": 1.0})
    Results(path).get("a", lambda: {"fd": 2.0})
    assert json.loads(path.read_text()) == {"a": {"fd": 1.0}}
