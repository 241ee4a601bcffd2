from cnn425.lab import progress


def test_plain_lines_when_output_is_not_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with progress.Reporter("training", 2) as reporter:
        reporter.advance("loss 1.0")
        reporter.say("a line that stays")
    assert capsys.readouterr().out == "training: 1 of 2  loss 1.0\na line that stays\n"


def test_short_work_is_not_reported(capsys):
    assert list(progress.watched(range(3), "quick", 3)) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_silent_says_nothing(capsys):
    with progress.Reporter("training", 1, silent=True) as reporter:
        reporter.advance()
        reporter.say("unheard")
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.Reporter("training", 2) as reporter:
        assert reporter.bar is not None
        reporter.advance("loss 0.5")
        reporter.say("[not markup]")
    assert "[not markup]" in capsys.readouterr().out
