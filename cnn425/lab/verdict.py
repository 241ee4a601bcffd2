"""The first and the last words of an experiment: what it claims, and what came out, as a sentence and as verdict.json.

    Claim: the first line of the experiment's docstring.             said by `opening` (cnn425/lab/progress.py), before anything runs
    Holds: verdict.sentence()                                        said by `conclude`, or: `Does not hold: ...`, `Not judged: ...`

A verdict is a NamedTuple with `holds`, with words below each field (the rows of the gallery), and with a method `sentence`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from cnn425.lab.folder import claim, write_whole
from cnn425.lab.progress import is_first, module_of, say


class Finding(NamedTuple):
    """What a script found: whether its claim holds, and the sentence."""

    holds: bool
    words: str

    def sentence(self) -> str:
        """What came out."""
        return self.words


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 as `98.7 %`."""
    return f"{100 * share:.{digits}f} %"


def conclude(verdict: Any, folder: Path | None = None, judged: bool = True) -> None:
    """Say what came out, in a sentence, and keep it in the run folder (None: nowhere); one process does it.

    A run that is too small for the claim is not `judged`.
    """
    words = verdict.sentence() if hasattr(verdict, "sentence") else ""
    judgement = "Not judged" if not judged else "Holds" if verdict.holds else "Does not hold"
    say(f"\n{judgement}{': ' * bool(words)}{words}.")
    if folder is not None and is_first():
        kept = {"experiment": module_of(type(verdict))[0].removeprefix("experiments."), "sentence": words, **verdict._asdict()}
        kept["holds"] = kept["holds"] if judged else None
        write_whole(claim(folder, "verdict.json"), json.dumps(kept, indent=2).encode() + b"\n")
