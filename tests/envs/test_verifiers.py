from __future__ import annotations

import math
import pickle
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.core.errors import OptionError
from tppo_rl.envs import verifiers
from tppo_rl.envs.answer_extraction import Extraction, last_boxed
from tppo_rl.envs.numbers import last_number
from tppo_rl.envs.verifiers import VERIFIERS, VerifierError, exact, find_verifier, multiple_choice, numeric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("it is 1,000,000.", 1_000_000),
        ("12,34", 34),
        ("1{,}234 and 5\\,678", 5678),
        ("1\u202f234\u202f567", 1_234_567),
        ("1'234", 1234),
        ("x = -5", -5),
        ("\u22127", -7),
        ("-$5", -5),
        ("$-5", -5),
        ("10-5", 5),
        ("(-7)", -7),
        ("\\$18", 18),
        ("€ 3", 3),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("1\u00bd", Fraction(3, 2)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\frac{3}{4}", Fraction(-3, 4)),
        ("\\dfrac{-3}{4}", Fraction(-3, 4)),
        ("2\\frac12", Fraction(5, 2)),
        ("1.5e3", 1500),
        ("1.5 \u00d7 10^3", 1500),
        ("5\\times 10^{-3}", Fraction(1, 200)),
        ("2^10", 1024),
        ("10\u00b2", 100),
        ("\u0663\u0664", 34),
        ("\uff11\uff12", 12),
        (".5", Fraction(1, 2)),
        ("5 km", 5),
        ("The answer is 42.", 42),
        ("2 + 3 = 5", 5),
    ],
)
def test_numbers_by_hand(text: str, value: Fraction | int) -> None:
    number = last_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    "text",
    ["", "none", "x2", "H2O", "5/0", "10^10^10", "9**9**9**9", "2^{2^{9}}", "1e999999999", "9" * 401, "7^65", "0^-1"],
)
def test_what_is_no_number_or_too_large_is_not_read(text: str) -> None:
    assert last_number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_a_number_is_read_however_it_is_written(whole: int, decimals: int) -> None:
    value = Fraction(whole, 10**decimals)
    plain = f"{whole / 10**decimals:.{decimals}f}" if abs(whole) < 10**9 else str(whole)
    value = value if abs(whole) < 10**9 else Fraction(whole)
    separated = f"{int(value):,}" if value.denominator == 1 else plain
    for text in (plain, separated, f"so it is ${plain}$.", f"**{separated}** apples"):
        number = last_number(text)
        assert number is not None
        assert number.value == value


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_numeric_is_right_only_for_equal_numbers(answer: Fraction, said: Fraction) -> None:
    def written(value: Fraction) -> str:
        return f"{value.numerator}/{value.denominator}"

    assert numeric(f"The answer is {written(said)}", written(answer)) == float(said == answer)
    assert numeric(written(answer), written(answer)) == 1.0


@pytest.mark.parametrize(
    ("response", "answer", "options", "right"),
    [
        ("It costs $1,234.50 in all.", "1234.5", {}, True),
        ("50%", "0.5", {}, True),
        ("50%", "50", {}, True),
        ("0.5", "50%", {}, True),
        ("50%", "50%", {}, True),
        ("0.5%", "50%", {}, False),
        ("5%", "50", {}, False),
        ("3.14", "3.14159", {}, False),
        ("3.14", "3.14159", {"tolerance": 0.01}, True),
        ("314", "315", {"relative_tolerance": 0.01}, True),
        ("0.33", "1/3", {}, False),
        ("I have 7, so \\boxed{8}. Or 9?", "8", {"extract": "boxed"}, True),
        ("I have 7", "7", {"extract": "boxed"}, False),
        ("#### 8\nor 9", "8", {"extract": {"after": "####"}}, True),
        ("8\n\n9 \n", "9", {"extract": "last_line"}, True),
        ("answer: 8; 9", "8", {"extract": {"pattern": r"answer: (\d+)"}}, True),
        ("10^10^10", "10", {}, False),
        ("", "0", {}, False),
    ],
)
def test_numeric_by_hand(response: str, answer: str, options: dict[str, Any], right: bool) -> None:
    assert numeric(response, answer, **options) == right
    assert find_verifier({"type": "numeric", **options})(response, answer) == right


@pytest.mark.parametrize(
    ("response", "answer", "options", "right"),
    [
        ("  a\n b ", "a b", {}, True),
        ("A B", "a b", {}, False),
        ("A B", "a b", {"ignore_case": True}, True),
        ("STRASSE", "straße", {"ignore_case": True}, True),
        ("a b c", "a b", {}, False),
        ("so \\boxed{a {b}} ", "a {b}", {"extract": "boxed"}, True),
        ("about 0.5", "1/2", {"extract": "last_number"}, True),
        ("", "a", {}, False),
    ],
)
def test_exact_by_hand(response: str, answer: str, options: dict[str, Any], right: bool) -> None:
    assert find_verifier({"type": "exact", **options})(response, answer) == right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("B", "B", True),
        ("(b)", "B", True),
        ("The answer is (B).", "B", True),
        ("The answer is B", "B) Paris", True),
        ("Answer: C. B is wrong", "C", True),
        ("\\boxed{\\text{D}}", "D", True),
        ("I choose\n**C**", "C", True),
        ("B) Paris", "B", True),
        ("answer: A or B", "A", False),
        ("A cat is not an answer", "A", False),
        ("A cat sat", "A", False),
        ("Z", "B", False),
        ("", "B", False),
    ],
)
def test_multiple_choice_by_hand(response: str, answer: str, right: bool) -> None:
    assert multiple_choice(response, answer) == right


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("\\boxed{1} \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}} end", "\\frac{1}{2}"),
        ("\\boxed 7$.", "7"),
        ("\\fbox{x}", "x"),
        ("\\boxed{1", None),
        ("\\boxed", None),
        ("boxed{1}", None),
    ],
)
def test_the_last_box(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


HOSTILE = [
    "9" * 200_000,
    "1," * 100_000,
    "1,234" * 40_000,
    "{" * 200_000,
    "\\boxed{" * 30_000,
    "^1" * 100_000,
    "2^" * 100_000,
    "1/" * 100_000,
    "1 1/" * 50_000,
    "\\frac{1" * 30_000,
    "\u0663" * 200_000,
    "-" * 200_000,
    " " * 200_000,
    "\n" * 200_000,
    "*(" * 100_000,
    "answer" * 30_000,
    "10^10^10",
    "\ud800",
    "\x00",
    "",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
@pytest.mark.parametrize("name", ["exact", "numeric", "multiple_choice"])
def test_hostile_text_is_wrong_at_once(name: str, text: str) -> None:
    for extract in ("all", "boxed", "last_line", "last_number", {"after": "####"}):
        verifier = find_verifier({"type": name, "extract": extract})
        assert verifier(text, "A" if name == "multiple_choice" else "7") == 0.0


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_gets_a_verdict(text: str) -> None:
    for name, answer in (("exact", "seven"), ("numeric", "7.125"), ("multiple_choice", "J")):
        assert find_verifier(name)(text, answer) in (0.0, 1.0)


@pytest.mark.timeout(60)
def test_a_pattern_that_runs_wild_is_a_failure() -> None:
    wild = find_verifier({"type": "exact", "extract": {"pattern": r"(?:a|a|aa)+$"}})
    with pytest.raises(VerifierError, match="took more than"):
        wild("a" * 60 + "b", "a")


@pytest.mark.parametrize(
    ("name", "answer"), [("exact", " "), ("numeric", "seven"), ("multiple_choice", "Paris"), ("multiple_choice", "")]
)
def test_a_known_answer_that_cannot_be_read_is_a_failure(name: str, answer: str) -> None:
    with pytest.raises(VerifierError, match=f"{name}: the known answer"):
        find_verifier(name)("anything", answer)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("numerik", ["verifier='numerik'", "numeric"]),
        ({"type": "numeric", "tolerence": 1}, ["verifier.tolerence=1", "tolerance"]),
        ({"type": "numeric", "tolerance": -1}, ["verifier.tolerance=-1", "greater than or equal to 0"]),
        ({"type": "numeric", "tolerance": math.nan}, ["verifier.tolerance=nan"]),
        ({"type": "exact", "extract": "box"}, ["verifier.extract='box'", "boxed"]),
        ({"type": "exact", "extract": {"pattern": "("}}, ["verifier.extract", "no regular expression"]),
        ({"type": "exact", "extract": {"after": ""}}, ["verifier.extract", "marker"]),
        ({"name": "exact"}, ["verifier=", "type"]),
        (3, ["verifier=3"]),
        ("no_such_module:check", ["no_such_module", "importable"]),
    ],
)
def test_a_verifier_that_will_not_do_is_refused(spec: Any, words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        find_verifier(spec)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "Value error" not in str(error.value)


def test_a_verifier_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "def starts(response: str, answer: str, *, length: int = 1) -> float:\n"
        "    if response == 'raise': raise KeyError('k')\n"
        "    if response == 'exit': raise SystemExit(3)\n"
        "    if response == 'nan': return float('nan')\n"
        "    if response == 'text': return '1'\n"
        "    return response[:length] == answer[:length]\n"
    )
    own = find_verifier({"type": f"{file}:starts", "length": 2})
    assert own("abc", "abd") == 1.0
    assert own("abc", "acd") == 0.0
    for response in ("raise", "exit", "nan", "text"):
        with pytest.raises(VerifierError, match="starts: "):
            own(response, "x")
    with pytest.raises(OptionError, match="length='two'"):
        find_verifier({"type": f"{file}:starts", "length": "two"})


def test_verifiers_travel_to_other_processes() -> None:
    verifier = pickle.loads(pickle.dumps(find_verifier({"type": "numeric", "tolerance": 0.5, "extract": "boxed"})))
    assert verifier("\\boxed{7.4}", "7") == 1.0


def test_the_names_are_registered() -> None:
    assert set(VERIFIERS) == {"exact", "numeric", "math", "multiple_choice"}
    assert Extraction.parse(Extraction.parse("boxed")) == Extraction("boxed")
    assert exact("a", "a") == 1.0


def test_math_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"verifier='math': the package math-verify is not installed"):
        find_verifier("math")


class TestMath:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("math_verify")

    @pytest.mark.parametrize(
        ("response", "answer", "extract", "right"),
        [
            ("so \\boxed{\\frac{1}{2}}", "0.5", "all", True),
            ("so $x=3$", "3", "all", True),
            ("\\boxed{(1+x)^2}", "1+2x+x^2", "all", True),
            ("$\\{1,2\\}$", "\\{2,1\\}", "all", True),
            ("talk " * 3000 + "\\boxed{7}" + " talk" * 3000, "7", "all", True),
            ("#### 1/2\nno 3", "0.5", {"after": "####"}, True),
            ("it is 0.5", "\\frac12", "last_number", True),
            ("I think 4", "3", "all", False),
            ("", "3", "all", False),
            ("no box", "3", "boxed", False),
        ],
    )
    def test_by_hand(self, response: str, answer: str, extract: Any, right: bool) -> None:
        assert find_verifier({"type": "math", "extract": extract})(response, answer) == right

    @pytest.mark.parametrize(
        "response",
        [
            "\\boxed{10^{10^{10}}}",
            "9**9**9**9",
            "\\boxed{2^{9999999}}",
            "99999999!",
            "\\boxed{" + "9" * 500 + "}",
            "\\boxed{\\binom{1000000}{500000}}",
            "\\boxed{((9!)!)!}",
            "\\boxed{9!!!}",
            "\\boxed{10^{99}!}",
            "\\boxed{(x+y+z)^{99}}",
            "\\boxed{" + "(" * 400 + "1" + "+1)" * 400 + "}",
        ],
    )
    @pytest.mark.timeout(60)
    def test_what_would_never_end_is_a_failure(self, response: str) -> None:
        with pytest.raises(VerifierError, match="too costly"):
            find_verifier("math")(response, "3")

    @pytest.mark.parametrize("answer", ["(1+x)^{12}", "2^{100}", "\\binom{20}{3}", "10!", "n!", "x^{99}", "\\sqrt{2}"])
    def test_what_is_not_too_costly_is_evaluated(self, answer: str) -> None:
        assert find_verifier("math")(f"\\boxed{{{answer}}}", answer) == 1.0
        assert find_verifier("math")("\\boxed{7}", answer) == 0.0

    def test_an_exception_inside_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import math_verify

        def broken(*args: Any, **kwargs: Any) -> bool:
            raise math_verify.errors.TimeoutException("slow")

        monkeypatch.setattr(math_verify, "verify", broken)
        with pytest.raises(VerifierError, match="math-verify failed: TimeoutException"):
            find_verifier("math")("$3$", "3")

    def test_the_known_answer_must_be_readable(self) -> None:
        with pytest.raises(VerifierError, match="cannot read the known answer"):
            find_verifier("math")("$3$", "???")

    def test_threads_and_no_alarm_signals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import signal

        def no_signal(*args: Any) -> None:
            raise AssertionError("a signal was set")

        monkeypatch.setattr(signal, "signal", no_signal)
        monkeypatch.setattr(signal, "alarm", no_signal)
        verifier, verdicts = find_verifier("math"), []
        threads = [
            threading.Thread(target=lambda number=number: verdicts.append(verifier(f"${number}$", "3")))
            for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(verdicts) == [0.0] * 5 + [1.0]
        assert verifier("$3$", "3") == 1.0
