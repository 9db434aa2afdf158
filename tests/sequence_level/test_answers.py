"""Numbers and letters case by case, and the normal form of numbers against exact fractions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.errors import UnknownNameError
from tokenscale.sequence_level.answers import boxed, extract

NORMAL_FORMS = [
    ("$29.00", "29"),
    ("29", "29"),
    ("29.", "29"),
    ("29.0", "29"),
    ("029", "29"),
    ("+29", "29"),
    ("0.10", "0.1"),
    (".5", "0.5"),
    ("-0", "0"),
    ("1,234", "1234"),
    ("1,234,567.890", "1234567.89"),
    (r"\$1,000.50", "1000.5"),
    ("1{,}234", "1234"),
    (r"1\,234", "1234"),
    ("-5", "-5"),
    ("\N{MINUS SIGN}5", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("-.25", "-0.25"),
    ("€7", "7"),
    ("US$5", "5"),
    ("50%", "50"),
    (r"12.5\%", "12.5"),
    ("1/2", "0.5"),
    ("-1/2", "-0.5"),
    ("3/4", "0.75"),
    ("2/6", "1/3"),
    ("-1/3", "-1/3"),
    ("4/2", "2"),
    ("1 1/2", "1.5"),
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac{22}{7}", "22/7"),
    (r"1\frac{1}{2}", "1.5"),
    (r"-\frac{1}{2}", "-0.5"),
    ("\N{MINUS SIGN}\\frac{1}{3}", "-1/3"),
    (r"\frac34", "0.75"),
    (r"-\dfrac 1 3", "-1/3"),
    ("1e5", "100000"),
    ("1.5e-3", "0.0015"),
    ("1E5", "100000"),
    (r"1.5 \times 10^{3}", "1500"),
    (r"6.02\cdot10^{23}", "602000000000000000000000"),
    ("1.5\N{MULTIPLICATION SIGN}10³", "1500"),
    ("2.5 x 10^-3", "0.0025"),
    ("-10^{5}", "-100000"),
    ("½", "0.5"),
    ("1½", "1.5"),
    ("-½", "-0.5"),
    ("-1 1/2", "-1.5"),
    (r"1\,\frac{1}{2}", "1.5"),
    (r"\frac{-1}{2}", "-0.5"),
    (r"\frac{1}{-2}", "-0.5"),
    (r"\frac{-1}{-2}", "0.5"),
    ("1 / 2", "0.5"),
    # separators of thousands
    ("1_000", "1000"),
    ("1'234", "1234"),
    ("1\N{NO-BREAK SPACE}234", "1234"),
    ("10 000", "10000"),
    ("1.234,56", "1234.56"),
    ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT TWO}", "12"),
    # currencies
    ("₹500", "500"),
    ("¥100", "100"),
    ("Rs. 1,500", "1500"),
    ("$ 5", "5"),
    ("HK$20", "20"),
    # a unit behind is dropped, and its exponent; a word for a number multiplies
    ("42 apples", "42"),
    ("5km", "5"),
    ("12 km", "12"),
    ("3.5kg", "3.5"),
    ("60 km/h", "60"),
    ("5 cm^2", "5"),
    ("12 m²", "12"),
    ("5 m/s^{2}", "5"),
    (r"5\text{ cm}^2", "5"),
    (r"45^\circ", "45"),
    ("5 percent", "5"),
    ("$1.5 million", "1500000"),
    ("2 thousand", "2000"),
    # brackets mean nothing: this is not bookkeeping
    ("(5)", "5"),
    ("(-5)", "-5"),
    ("{5}", "5"),
]

NUMBERS = [
    # rule 1: a box
    (r"\boxed{42}", "42"),
    (r"so \boxed{\text{about } {42}}, and 7", "42"),
    (r"\boxed{\frac{1}{2}} #### 3", "0.5"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{\boxed{3}} 4", "3"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{9 is never closed, but 8", "8"),
    (r"\boxed{\text{none}} The answer is 6.", "6"),
    # rule 2: GSM8K's mark
    ("2 + 2 = 4\n#### 42", "42"),
    ("#### $1,234.00\n7", "1234"),
    ("####42", "42"),
    ("#### Step 1\n7\n#### 9\n8", "9"),
    ("#### 42. The answer is 7.", "42"),
    # rule 3: a sentence that says so
    ("The answer is 42.", "42"),
    ("The answer is 42. I checked it 3 times.", "42"),
    ("The answer is $29.00", "29"),
    ("the final answer is: **-7**, twice 3", "-7"),
    ("**Answer:** 42 (in 2 steps)", "42"),
    ("Answer: 42\nQ: What is 5?", "42"),
    (r"The answer is \(42\), not 7", "42"),
    ("The answer is $42$, not 7", "42"),
    ("The answer is 5 + 3 = 8, which took 2 steps", "8"),
    ("The answer is 5. Check: 3 + 4 = 7.", "5"),
    ("The answer is 1. No: the answer is 2. Two of 3.", "2"),
    ("The answer is found from 3 and 4: 7", "7"),
    ("The ANSWER = 12 of 13", "12"),
    # rule 4: the last number
    ("17 + 5 = 22 apples", "22"),
    ("He pays $10-$5", "5"),
    ("10-5", "5"),
    ("10 - 5", "5"),
    ("(3)-5", "5"),
    ("pages 3\N{EN DASH}5", "5"),
    ("x = -5", "-5"),
    ("7 on 12/25/2024", "7"),
    ("5, 6,7", "7"),
    ("答案是42个", "42"),
    ("the 2nd", "2"),
    ("#### 40 + 2 = 42", "42"),
    ("The answer is approximately 42. I checked it 3 times.", "42"),
    ("The answer is x = 42, from 3 equations", "42"),
    ("The answer to 3 + 4 is 7, in 2 steps", "7"),
    ("答案是42。共3步", "42"),
    ("He is 5-year-old", "5"),
    ("so...5", "5"),
    ("x_1 = 5 and x_{2}", "5"),
    # what has digits and is no number: dates, times, ratios, versions, powers, roots, multiples of pi
    ("7 on 2024-01-05", "7"),
    ("7 on 25.12.2024", "7"),
    ("7 at 12:30", "7"),
    ("7 at 12:30:15", "7"),
    ("7 in the ratio 3:4", "7"),
    ("7 in version 1.2.3", "7"),
    ("7 of 2^10", "7"),
    ("7 of (2)^3", "7"),
    (r"7 of 3\sqrt{2}", "7"),
    (r"7 of 2\pi", "7"),
    # no number
    ("1.2.3", None),
    ("12:30", None),
    (r"\boxed{3\sqrt{2}}", None),
    (r"\boxed{}", None),
    ("", None),
    ("no number", None),
    ("x2 and GSM8K", None),
    ("1/0", None),
    ("7 then 1/0", "7"),
    ("1" * 100, None),
    ("3 then " + "1" * 100, "3"),
    ("3 then 1e50", "3"),
    ("3 then 1e-50", "3"),
    (r"3-\frac{1}{2}", "0.5"),
]

LETTERS = [
    ("B", "B"),
    ("(B)", "B"),
    (" B. Paris", "B"),
    ("B) Paris", "B"),
    ("**B**", "B"),
    ("The answer is (C).", "C"),
    ("The answer is C", "C"),
    ("Answer: D, not (A)", "D"),
    (r"\boxed{\text{(B)}} (C)", "B"),
    ("#### C", "C"),
    ("Not (A), rather (D).", "D"),
    ("The answer is option B", "B"),
    ("answer: choice (C)", "C"),
    ("The best answer would be D", "D"),
    (r"The answer is \textbf{(D)}", "D"),
    ("**Answer: C**", "C"),
    # small letters, where nothing else can be meant
    ("The answer is (b).", "B"),
    (r"\boxed{b}", "B"),
    ("#### b", "B"),
    ("(b)", "B"),
    ("a dog", None),
    ("A dog", None),
    ("The answer is a dog", None),
    ("Because", None),
    ("42", None),
]


@pytest.mark.parametrize(("text", "answer"), NORMAL_FORMS)
def test_equal_numbers_have_one_normal_form(text: str, answer: str) -> None:
    assert extract(text) == answer
    assert extract(f"The answer is {text} (step 3)") == answer
    assert extract(rf"\boxed{{{text}}} in 3 steps") == answer


@pytest.mark.parametrize(("text", "answer"), NUMBERS)
def test_the_rules_in_their_order(text: str, answer: str | None) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(("text", "answer"), LETTERS)
def test_letters(text: str, answer: str | None) -> None:
    assert extract(text, "letter") == answer


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown kind of answer 'leter'\n.*did you mean 'letter'"):
        extract("B", "leter")


@given(st.decimals(-(10**12), 10**12, allow_nan=False, places=4), st.booleans())
def test_decimals_keep_their_exact_value(number: Decimal, commas: bool) -> None:
    answer = extract(f"{number:,f}" if commas else f"{number:f}")
    assert answer is not None
    assert Fraction(answer) == Fraction(number)
    assert extract(answer) == answer
    assert not (answer.endswith("0") and "." in answer)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_fractions_keep_their_exact_value(top: int, bottom: int) -> None:
    answer = extract(f"{top}/{bottom}")
    assert answer is not None
    assert Fraction(answer) == Fraction(top, bottom)
    assert extract(answer) == answer


@given(st.text(st.sampled_from(list(r"ab{}\ "))), st.text(st.sampled_from(list("ab \n"))))
def test_a_box_is_found_in_any_company(content: str, around: str) -> None:
    balanced = content.replace("{", "").replace("}", "").replace("\\", "")
    assert boxed(rf"{around}\boxed{{{balanced}{{{balanced}}}}}{around}") == [f"{balanced}{{{balanced}}}"]
