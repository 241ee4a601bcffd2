"""Expressions typed as text, and the page of their derivatives in a real browser."""

import math

import pytest
from browser import accessible, chromium, opened

from cnn425 import autodiff
from cnn425.autodiff import reverse
from cnn425.lab.errors import LabError
from cnn425.lab.expressions import parsed, point
from experiments import derivatives

FUNCTIONS = {name: getattr(autodiff, name) for name in derivatives.FUNCTIONS}


@pytest.mark.parametrize(
    ("text", "names", "values", "expected"),
    [
        ("ln(x1) + x1*x2 - sin(x2)", ["x1", "x2"], (2.0, 5.0), math.log(2) + 10 - math.sin(5)),
        ("x10 / x2 ** 2", ["x2", "x10"], (2.0, 8.0), 2.0),
        ("-b * (+a) + 1.5", ["a", "b"], (2.0, 3.0), -4.5),
        ("maximum(u, tanh(v))", ["u", "v"], (-1.0, 0.5), math.tanh(0.5)),
    ],
)
def test_an_expression_is_the_function_it_says(text, names, values, expected):
    found, function = parsed(text, FUNCTIONS)
    assert found == names
    value, _ = reverse.value_and_gradient(function, *values)
    assert float(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ln(x1", "is not an expression"),
        ("", "is not an expression"),
        ("x1 = 2", "is not an expression"),
        ("2 + 3", "has no variable"),
        ("x1 ^ 2", r"a power is written x\*\*2"),
        ("log(x1)", "log is not a function of this page; it knows ln, exp"),
        ("__import__('os')", "is not a function of this page"),
        ("x1.real", "Attribute is not part of an expression"),
        ("[x1]", "List is not part of an expression"),
        ("x1 + 'a'", "'a' is not a number"),
        ("x1 + True", "True is not a number"),
        ("ln(a=x1)", "takes plain arguments"),
        ("+".join(["x1"] * 200), "parts, and a page of more than 200"),
        ("(" * 500 + "x1" + ")" * 500, "is not an expression"),
    ],
)
def test_what_is_no_expression_is_one_sentence(text, words):
    with pytest.raises(LabError, match=words) as caught:
        parsed(text, FUNCTIONS)
    assert len(str(caught.value).splitlines()) == 1


def test_the_point_names_every_variable():
    assert point(["x2=5", "x1 = 2"], ["x1", "x2"]) == [2.0, 5.0]
    for words, message in ((["x1"], "not of the form"), (["x1=2"], "says nothing about x2"), (["x1=1", "x2=2", "z=3"], "names z")):
        with pytest.raises(LabError, match=message):
            point(words, ["x1", "x2"])


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def test_the_page_of_the_slides_function_step_by_step(browser, tmp_path, capsys):
    verdict = derivatives.main(["--page", "--log-dir", str(tmp_path)])
    assert verdict.holds
    assert verdict.gradient == pytest.approx([5.5, 2 - math.cos(5)])
    assert "open" in capsys.readouterr().out
    with opened(browser, tmp_path / "derivatives.html") as page:
        now, step = page.locator("#now"), page.locator("#step")
        assert "Gradient: dy/dx1 = 5.5, dy/dx2 = 1.7163." in now.inner_text()
        said = []
        for number in range(1, 22):
            page.keyboard.press("ArrowRight")
            assert step.inner_text().endswith(f"step {number} of 21")
            said.append(now.inner_text())
        assert "v3 = v0 · v1 = 2 · 5 = 10" in said[3]
        assert "y = a · b: dy/da = b, dy/db = a" in said[3]
        assert "v̇3 = v1 · v̇0 = 5 · 1 = 5" in said[7 + 3]
        assert "v̄6 = 1: the backward pass starts at the output" in said[14]
        assert "v̄0 = 1 / v0 · v̄2 + v1 · v̄3 = 1 / 2 · 1 + 5 · 1 = 5.5: 2 nodes use it" in said[20]
        page.locator("#first").click()
        assert "adjoint" not in page.locator("#graph").inner_text(), "nothing is known before it is computed"
        page.locator("#all").click()
        page.locator("#by").select_option("1")
        assert "v̇4 = cos(v1) · v̇1" in (page.locator("[data-node=v4]").click() or now.inner_text())
        assert accessible(page) == []


@pytest.mark.parametrize("text", ["sigmoid(a) ** 2 / (1 + exp(-b)) * relu(c)", "x", "2 * x1 - x1", "a + 0 * b"])
def test_every_number_on_the_page_of_other_expressions(browser, tmp_path, text):
    names, function = parsed(text, FUNCTIONS)
    values = [0.7 + 0.3 * k for k in range(len(names))]
    derivatives.main(
        ["--page", "--expression", text, "--at", *(f"{n}={v}" for n, v in zip(names, values, strict=True)), "--log-dir", str(tmp_path)]
    )
    with opened(browser, tmp_path / "derivatives.html", width=390) as page:
        shown = page.locator("#traces tr:not(:first-child) td:last-child").all_inner_texts()[: len(names)]
        assert [float(words.replace("−", "-")) for words in shown] == pytest.approx(reverse.gradient(function, *values), rel=1e-4)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert accessible(page) == []


def test_bad_expressions_and_places_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for words, message in (
        (["--expression", "ln(x1)", "--at", "x1=-1"], "cannot be evaluated at x1=-1: ln needs a positive number, got -1"),
        (["--expression", "sin(x1, x1)", "--at", "x1=1"], "cannot be evaluated"),
        (["--log-dir", str(tmp_path / "file")], "cannot be written"),
    ):
        with pytest.raises(LabError, match=message):
            derivatives.main(["--page", *words])
