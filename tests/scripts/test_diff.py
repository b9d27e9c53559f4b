"""analyze.py diff: the first tick that differs, in what, and bad input as one sentence."""

import json

import pytest
from click.testing import CliRunner

import analyze


def write_run(path, losses, **options):
    path.mkdir()
    ticks = [
        {"Progress/kimg": {"mean": 1.0 + i}, "Loss/loss": {"num": 1, "mean": loss}, "Timing/total_sec": {"mean": i},
         "weights": f"hash{loss}", "timestamp": hash(path)}
        for i, loss in enumerate(losses)
    ]  # fmt: skip
    (path / "stats.jsonl").write_text("".join(json.dumps(t) + "\n" for t in ticks))
    (path / "training_options.json").write_text(json.dumps(options))
    return str(path)


def diff(*arguments):
    return CliRunner().invoke(analyze.main, ["diff", *map(str, arguments)])


def test_where_runs_part(tmp_path):
    a = write_run(tmp_path / "a", [5, 4, 3], lr=0.1, seed=0, finished=True)
    b = write_run(tmp_path / "b", [5, 4, 2.5, 2], lr=0.2, seed=0)
    result = diff(a, b, f"--outdir={tmp_path}/out")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines == [
        "option lr: 0.1 | 0.2",
        "they part at tick 2, 3 kimg, in 2 keys",
        "  weights: hash3 | hash2.5",
        "  Loss/loss: 3 | 2.5",
    ]
    found = json.loads((tmp_path / "out" / "diff.json").read_text())
    assert found["first"]["keys"] == {"weights": ["hash3", "hash2.5"], "Loss/loss": [3, 2.5]}


def test_a_run_that_goes_on(tmp_path):
    a, b = write_run(tmp_path / "a", [5, 4]), write_run(tmp_path / "b", [5, 4, 3])
    assert diff(a, b).output == f"the same in all 2 ticks that both have; then {b} goes on to tick 2\n"
    assert diff(b, a).output == f"the same in all 2 ticks that both have; then {b} goes on to tick 2\n"


@pytest.mark.parametrize(
    ("arguments", "words"), [(["{a}"], "takes 2 values"), (["{a}", "nowhere"], "holds no stats.jsonl")]
)
def test_bad_input_is_one_sentence(tmp_path, arguments, words):
    a = write_run(tmp_path / "a", [1])
    result = diff(*(argument.format(a=a) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert "Traceback" not in result.output
