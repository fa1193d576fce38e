"""Turns that a model might write and that scorers trip over; none of them answers anything."""

from __future__ import annotations

_BOMBS = ("10^10^10", "9**9**9**9", "99999!!", "2^{2^{2^{2^{2^{2}}}}}", "1e999999999", "\\binom{99999}{49999}")
_OPEN = ("(", "[", "{", "\\frac{", "\\sqrt{", "<answer>", '{"a":')
_CALLS = (
    '<tool_call>{"name": "__class__", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "reset", "arguments": {}}</tool_call>',
    '<tool_call>{"name": ["x"], "arguments": "{"}</tool_call>',
    '{"name": "no_such_tool", "arguments": {"a": [[[[{}]]]]}}',
)
_CODE = ("__import__('time').sleep(60)", "exec('while True: pass')", "raise SystemExit", "lambda: 0", "'%s' % ()")

HOSTILE: dict[str, str] = {
    "empty": "",
    "white space": " \t\r\n\u00a0\u2028",
    "60,000 characters": "x" * 60_000,
    "60,000 digits": "9" * 60_000,
    "60,000 words": "so " * 20_000,
    "nul": "\x00<answer>\x00</answer>\x00",
    "half a surrogate pair": "\ud800<answer>\udfff</answer>",
    "undecodable bytes": b"\xff\xfe<answer>\x80</answer>".decode("utf-8", "surrogateescape"),
    "emoji": "🧨👩‍👩‍👧‍👦" * 500,
    "right to left": "\u202e<answer>\u05d0\u05d1\u0661\u0662</answer>\u202c",
    "combining marks": "<answer>a" + "\u0301" * 5_000 + "</answer>",
    "not a number": "<answer>nan</answer> \\boxed{nan} #### nan",
    "infinity": "<answer>-inf</answer> \\boxed{\\infty} #### -inf",
    "division by zero": "<answer>1/0</answer> \\boxed{\\frac{1}{0}} #### 1/0",
    "odd digits": "<answer>¾²</answer> \\boxed{¾²} #### ¾²",
    **{f"bomb {bomb}": f"<answer>{bomb}</answer> $\\boxed{{{bomb}}}$ #### {bomb}" for bomb in _BOMBS},
    **{f"deep {one}": one * 5_000 for one in _OPEN},
    "deep and closed": "<answer>" + "(" * 3_000 + "0" + ")" * 3_000 + "</answer>",
    **{f"call {number}": call for number, call in enumerate(_CALLS)},
    **{f"code {number}": f"<answer>{code}</answer>" for number, code in enumerate(_CODE)},
}
"""Texts by what they are."""
