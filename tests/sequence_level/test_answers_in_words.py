"""Yes or no, free text and mathematical expressions: case by case."""

from __future__ import annotations

import pytest

from tokenscale.sequence_level.answers import extract

BOOLEANS = [
    ("Yes", "yes"),
    ("NO!", "no"),
    ("True.", "yes"),
    ("**False**", "no"),
    ("No, because it is true", "no"),
    ("So the answer is yes.", "yes"),
    ("Answer: no", "no"),
    (r"\boxed{\text{Yes}} or no", "yes"),
    ("#### True", "yes"),
    ("It is not true", "no"),
    ("It isn't false", "yes"),
    ("The answer is not true", "no"),
    ("yes or no? No.", "no"),
    ("true\nfalse", "yes"),
    # "no" before a word decides nothing
    ("There is no way, so yes", "yes"),
    ("I have no idea", None),
    ("No one knows", None),
    ("yesterday", None),
    ("Nope", None),
    ("", None),
]

TEXTS = [
    # one form
    ("Paris", "paris"),
    ("  the   PARIS ", "paris"),
    ("**Paris**.", "paris"),
    ('"Paris"', "paris"),
    ("(Paris)", "paris"),
    (r"\text{Paris}", "paris"),
    ("$x$", "x"),
    ("\N{FULLWIDTH LATIN CAPITAL LETTER P}aris", "paris"),
    ("Stra\N{LATIN SMALL LETTER SHARP S}e", "strasse"),
    # what stands inside stays
    ("vitamin A", "vitamin a"),
    ("(a) or (b)", "(a) or (b)"),
    ("C++", "c++"),
    ("Paris, France", "paris, france"),
    ("A", "a"),
    ("the", "the"),
    ("-5", "-5"),
    # where it stands
    ("Some\nreason.\n\nParis\n", "paris"),
    ("Some reason.\n```", "some reason"),
    (r"\boxed{\text{New  York}}, not Rome", "new york"),
    (r"\boxed{Rome} \boxed{Paris}", "paris"),
    ('#### "Paris"\nRome', "paris"),
    ("The answer is Paris. It has a tower.", "paris"),
    ("The answer is St. Louis. I know.", "st. louis"),
    ("The answer is 3.5 km.", "3.5 km"),
    ("Answer: the cat\nand more", "cat"),
    ("Answer:\nParis", "paris"),
    ("The answer is Rome. No: the answer is Paris.", "paris"),
    (r"\boxed{the answer is Paris}", "paris"),
    (r"\boxed{#### \boxed{the answer is Paris}}", "paris"),
    # nothing there
    ("...", None),
    ("", None),
    (r"\boxed{}", None),
]

MATHEMATICS = [
    # numbers, where the whole is one
    ("42", "42"),
    ("$29.00", "29"),
    (r"1{,}234", "1234"),
    (r"\frac12", "0.5"),
    (r"-\dfrac{1}{3}", "-1/3"),
    (r"5\text{ cm}^2", "5"),
    (r"10\text{ square units}", "10"),
    ("5 apples", "5"),
    (r"45^\circ", "45"),
    (r"50\%", "50"),
    ("10^{5}", "100000"),
    ("(5)", "5"),
    ("5 million", "5000000"),
    # a value of a variable, and of a calculation; an equation stays
    ("x = 5", "5"),
    ("y=2x+3", "2x+3"),
    (r"\frac12+\frac13=\frac56", "5/6"),
    ("5 + 3 = 8", "8"),
    ("2x+y=3", "2x+y=3"),
    (r"x = 5 \text{ or } x = 7", r"x=5\text{or}x=7"),
    (r"x \in [0, 1]", "[0,1]"),
    # one form
    ("x + 1", "x+1"),
    (r"\dfrac{\pi}{2}", r"\frac{\pi}{2}"),
    (r"\dfrac\pi2", r"\frac{\pi}{2}"),
    (r"\pi/2", r"\frac{\pi}{2}"),
    ("π/2", r"\frac{\pi}{2}"),
    ("a/b", r"\frac{a}{b}"),
    (r"\sqrt2", r"\sqrt{2}"),
    ("√2", r"\sqrt{2}"),
    (r"2\times 3x", r"2\cdot3x"),
    (r"2 \cdot 3x", r"2\cdot3x"),
    (r"\left( 1, \frac12 \right)", r"(1,\frac{1}{2})"),
    ("x^{2}", "x^2"),
    ("x²", "x^2"),
    ("x^{10}", "x^{10}"),
    ("x_{1}", "x_1"),
    ("1010_2", "1010_2"),
    ("2^{10}", "2^{10}"),
    (r"x \neq 3", r"x\ne3"),
    ("x≠3", r"x\ne3"),
    (r"\lbrace 1, 2 \rbrace", r"\{1,2\}"),
    (r"\sin  x", r"\sin x"),
    (r"\operatorname{sin} x", r"\sin x"),
    (r"5\mathbf{v}", "5v"),
    ("5x", "5x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    # words
    ("Evelyn", r"\text{evelyn}"),
    (r"\text{Evelyn}", r"\text{evelyn}"),
    (r"\text{No  solution.}", r"\text{no solution}"),
    (r"\text{(C)}", "C"),
    ("(C)", "C"),
    (r"\mathrm{e}", "e"),
]

MATHEMATICS_IN_TEXTS = [
    (r"So \[ \boxed{ \frac{3}{4} } \] of 7", "0.75"),
    ("#### x + 1\n7", "x+1"),
    ("The answer is $x^2$. Done in 3 steps", "x^2"),
    ("The answer is 5 because of 3", "5"),
    ("Therefore $x=5$.", "5"),
    ("It costs $5, then $6, so $x$ is good", "x"),
    ("We have $x=3$. So Tom has 5 apples", "5"),
    (r"So $\dfrac{\pi}2$.", r"\frac{\pi}{2}"),
    ("So we get\n\nx^2 + 1", "x^2+1"),
    (r"hence \(a + b\) it is", "a+b"),
    (r"\boxed{no solution}", r"\text{no solution}"),
    ("The answer is all real numbers.", r"\text{all real numbers}"),
    # no value
    ("I do not know", None),
    (r"\boxed{}", None),
    (r"\boxed{\frac{x}{", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), BOOLEANS)
def test_yes_or_no(text: str, answer: str | None) -> None:
    assert extract(text, "boolean") == answer


@pytest.mark.parametrize(("text", "answer"), TEXTS)
def test_free_text(text: str, answer: str | None) -> None:
    assert extract(text, "text") == answer


@pytest.mark.parametrize(("text", "answer"), MATHEMATICS + MATHEMATICS_IN_TEXTS)
def test_mathematics(text: str, answer: str | None) -> None:
    assert extract(text, "math") == answer


@pytest.mark.parametrize(("content", "answer"), MATHEMATICS)
def test_a_box_gives_what_its_content_alone_gives(content: str, answer: str) -> None:
    assert extract(rf"Of 3 ways, one gives \boxed{{{content}}} after 7 steps.", "math") == answer
