"""Records beside results."""

from torch_utils.provenance import MADE_BY, differences, digest, read_record, write_record

RECORD = {"network": {"weights": "ab", "path": "ve"}, "sampler": {"levels": [80.0, 0.0]}, "class": None}


def test_what_is_written_is_read(tmp_path):
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    assert differences(read_record(tmp_path), RECORD) == []


def test_no_record(tmp_path):
    assert read_record(tmp_path) is None
    (tmp_path / MADE_BY).write_text("[1, 2")
    assert read_record(tmp_path) is None
    (tmp_path / MADE_BY).write_text("[1, 2]")
    assert read_record(tmp_path) is None


def test_differences_are_named():
    other = {"network": {"weights": "cd", "path": "ve"}, "sampler": {"levels": [40.0, 0.0]}, "class": 3}
    assert differences(RECORD, other) == ["network.weights", "sampler.levels", "class"]
    assert differences({}, RECORD) == ["network", "sampler"]  # and no class, which is as good as None
    assert differences({**RECORD, "more": 1}, RECORD) == ["more"]


def test_digest_changes_with_the_record_alone():
    assert digest(RECORD) == digest(dict(reversed(RECORD.items())))
    assert digest(RECORD) != digest({**RECORD, "class": 1})
    assert len(digest(RECORD)) == 8
