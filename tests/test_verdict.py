"""What came out is said in a sentence, kept beside the run, and found again by `python -m experiments`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cnn425.lab.folder import locked
from cnn425.lab.verdict import conclude, percent
from experiments import __main__ as catalogue


class Verdict(NamedTuple):
    holds: bool
    share: float

    def sentence(self):
        return f"{percent(self.share, 1)} of them"


@pytest.mark.parametrize(("holds", "said"), [(True, "Holds: 98.8 % of them."), (False, "Does not hold: 98.8 % of them.")])
def test_a_verdict_is_a_sentence_and_a_file(holds, said, tmp_path, capsys):
    with locked(tmp_path):
        conclude(Verdict(holds, 0.9876), tmp_path)
    assert capsys.readouterr().out.strip() == said
    kept = json.loads((tmp_path / "verdict.json").read_text())
    assert kept == {"experiment": __name__, "sentence": "98.8 % of them", "holds": holds, "share": 0.9876}


def test_a_run_that_is_too_small_for_the_claim_is_not_judged(tmp_path, capsys):
    with locked(tmp_path):
        conclude(Verdict(True, 0.9876), tmp_path, judged=False)
    assert capsys.readouterr().out.strip() == "Not judged: 98.8 % of them."
    assert json.loads((tmp_path / "verdict.json").read_text())["holds"] is None


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conclude(Verdict(True, 1.0))
    assert not list(tmp_path.iterdir())


def test_the_list_has_every_claim_its_duration_and_the_newest_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place, holds in (("runs/old", True), ("runs/demo/new", False), ("runs/broken", None)):
        Path(place).mkdir(parents=True)
        Path(place, "verdict.json").write_text(
            "?" if holds is None else json.dumps({"experiment": "shift", "holds": holds, "sentence": "so it is"})
        )
    catalogue.main([])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert [line.split()[0] for line in told.splitlines() if line[:1].strip()][:-2] == catalogue.names()
    assert "last time: does not hold: so it is" in told
    for name in catalogue.names():
        claim, duration = catalogue.described(name)
        assert claim.endswith(".")
        assert duration.endswith(("seconds", "minute", "minutes", "hours")), name


def test_an_experiment_is_run_by_its_name_with_its_options(tmp_path, capsys):
    for words, code in ((["counting", "--model", "3-4-2", "--log-dir", str(tmp_path)], 0), (["no-such"], 2)):
        with pytest.raises(SystemExit) as end:
            catalogue.main(words)
        assert end.value.code == code
    out, err = capsys.readouterr()
    assert out.startswith("Claim: Counting: the same 40,000 units")
    assert "\nHolds: 40,000 units on 200x200 pixels have 1,600,000,000 weights" in out
    assert out.splitlines()[-1].startswith(f"next: tensorboard --logdir {tmp_path}")
    assert err.startswith("there is no experiment no-such; there are nonlinearity, ")


def test_the_list_is_there_before_torch_is_loaded():
    code = "import sys; from experiments import __main__ as m; m.main([]); m.main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[1])
