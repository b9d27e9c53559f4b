"""What tests of every command ask of its result: that it worked, or that it refused in words."""


def ok(result):
    assert result.exit_code == 0, result.output
    return result.output


def refused(result, *pieces):
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    for piece in pieces:
        assert piece in result.output, result.output
