"""Brings the many ways to typeset one short answer to one plain notation; never changes a value."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rewards.answers.grammar import FUNCTIONS, GREEK
from rewards.answers.macros import expand_macros
from rewards.answers.markup import without_markup
from rewards.answers.numerals import plain_numerals, without_periods

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_FRACTIONS = ("½12", "⅓13", "⅔23", "¼14", "¾34", "⅕15", "⅖25", "⅗35", "⅘45", "⅙16", "⅚56", "⅛18", "⅜38", "⅝58", "⅞78")
_CHARS = {
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"), None),
    **dict.fromkeys(map(ord, "\u202a\u202b\u202c\u2066\u2067\u2069"), None),
    **dict.fromkeys(map(ord, "\u2009\u202f\u2006\u2005\u200a"), "\\,"),
    **dict.fromkeys(map(ord, "−–—‒﹣－"), "-"),
    **dict.fromkeys(map(ord, "×·⋅∙•∗"), "*"),
    **dict.fromkeys(map(ord, "°º˚∘゜"), "°"),
    **dict.fromkeys(map(ord, "’‘′"), "'"),
    **dict.fromkeys(map(ord, "“”″"), '"'),
    **{ord(glyph): f"\\frac{{{top}}}{{{bottom}}}" for glyph, top, bottom in _FRACTIONS},
    ord("⟨"): "(", ord("⟩"): ")", ord("〈"): "(", ord("〉"): ")", ord("∖"): "\\setminus ",
    ord("∅"): "\\emptyset ", ord("ℝ"): "\\mathbb{R} ",
    ord("÷"): "/", ord("∕"): "/", ord("⁄"): "/", ord("√"): " sqrt ", ord("π"): "\\pi ", ord("∞"): "\\infty ",
    ord("≤"): "\\le ", ord("≥"): "\\ge ", ord("⩽"): "\\le ", ord("⩾"): "\\ge ", ord("≠"): "\\ne ", ord("±"): "\\pm ",
    ord("∪"): "\\cup ", ord("∩"): "\\cap ", ord("≈"): "\\approx ", ord("∈"): "\\in ", ord("₤"): "£", ord("％"): "%",
    ord("≦"): "\\le ", ord("≧"): "\\ge ", ord("∛"): "\\sqrt[3]", ord("∜"): "\\sqrt[4]", ord("∶"): ":",
    ord("∠"): "\\angle ", ord("∡"): "\\angle ", ord("△"): "\\triangle ", ord("∆"): "\\triangle ",
    ord("∣"): "|", ord("❘"): "|", ord("。"): ".", ord("、"): ",", ord("，"): ",",
    ord("θ"): "\\theta ", ord("α"): "\\alpha ", ord("β"): "\\beta ",
}  # fmt: skip
# A circled digit is the number of a statement: several in a row are several numbers.
_CIRCLED = {chr(ord(first) + place): str(place + 1) for first in "①⑴❶➀➊" for place in range(10)}
_CIRCLED_RUN = re.compile("[" + "".join(_CIRCLED) + "](?:\\s*[" + "".join(_CIRCLED) + "])*")
_SUPER_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUB_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SMALL_FRACTION = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/]([₀₁₂₃₄₅₆₇₈₉]+)")
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|operatorname|mbox|hbox|boldsymbol|bm"
    r")\*?\s*\{([^{}]*)\}"
)
# A line over two points names their segment, arc or vector; over anything else it is a complement, a mean or a numeral.
_OVER_POINTS = re.compile(
    r"\\(?:overline|widehat|overrightarrow|overleftrightarrow|overparen|wideparen|vec)\s*"
    r"\{(\s*[A-Z]'*(?:_(?:\d|\{\d\}))?\s*[A-Z]'*(?:_(?:\d|\{\d\}))?\s*)\}"
)
_VECTOR = re.compile(r"\\(?:vec|overrightarrow)\s*(?:\{\s*([a-z])\s*\}|([a-z])(?![A-Za-z]))")
# Braces that group nothing: {{x}_{1}} is x_{1}, {60}° is 60°; and braces of a set that lack their backslashes.
_IDLE_BRACES = re.compile(
    r"(?<![A-Za-z\\}\]^_])\{\s*(?:([A-Za-z])\s*\}(?=\s*_)|([A-Za-z]_\s*(?:\w|\{[^{}]*\}))\s*\}|(-?\d+(?:\.\d+)?)\s*\}(?=°)"
    r"|(-?\d+(?:\.\d+)?°)\s*\})"
)
_SET_BRACES = re.compile(r"(?<=[\s=(])(?<!\\left )\{(\s*(?:[A-Za-z]\s*[|:][^{}]*|[^{}|:\\]*,[^{}|:]*))\}")
_DENIED = re.compile(r"\\(?:not|cancel|xcancel|bcancel)(?![A-Za-z])\s*(?:\{\s*=\s*\}|=)|=\s*/\s*=|/=")
_SIZED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|rm|bf|it|phantom)(?![A-Za-z])"
)
_DIGIT_GAP = re.compile(r"(?<=\d)(?:,\s?\\!\s*|\\[,!;: ]|\{,\}|~)(?=\d{3}(?!\d))")
_SPACE = re.compile(r"(?<!\\)\\[,;:> \n]|\\q?quad|~|&nbsp;|\s+")
_COMMANDS = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "cdot": "*", "times": "*", "ast": "*", "div": "/",
    "leq": "\\le", "leqslant": "\\le", "geq": "\\ge", "geqslant": "\\ge", "neq": "\\ne", "lt": "<", "gt": ">",
    "degree": "°", "circ": "°", "degrees": "°", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]",
    "langle": "(", "rangle": ")", "R": "\\mathbb{R}", "reals": "\\mathbb{R}",
    "dbinom": "\\binom", "tbinom": "\\binom", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "colon": ":",
    "simeq": "\\approx", "thickapprox": "\\approx", "varnothing": "\\emptyset", "lor": " or ", "vee": " or ",
    "pounds": "£", "euro": "€", "percent": "%", "prime": "'", "uppi": "\\pi",
    "measuredangle": "\\angle", "vartriangle": "\\triangle",
}  # fmt: skip
_COMMAND = re.compile(r"\\(" + "|".join(sorted(_COMMANDS, key=len, reverse=True)) + r")(?![A-Za-z])")
# Commands that stay what they are; most answers hold no other.
_COMMAND_NAMES = re.compile(r"\\([A-Za-z]+)")
_INERT = GREEK | FUNCTIONS | frozenset(["frac", "sqrt", "pi", "infty", "pm", "le", "ge", "ne", "approx", "in", "angle"])
_DEGREE = re.compile(r"\^\s*(?:\{\s*°\s*\}|°)|\{\s*°\s*\}")
_PRIMES = re.compile(r"\^\s*\{?((?:\s*')+)\s*\}?")
_DELIMITERS = re.compile(r"\$\$|\$|\\\(|\\\)|\\\[|\\\]")
_PRICE = re.compile(r"(?:^|\s)\$\s?(?=\d)|(?<=\d)\s?\$$")
_BUILDER = re.compile(r"^\{\s*[A-Za-z]\s*(?:\\in\b[^{}|:]{0,20}(?:\{R\})?\s*)?[|:][^{}]*\}$")
# (1, 2) and 1,234 in braces are no sets.
_ROUND, _LISTED, _THOUSANDS = re.compile(r"\([^()]*\)"), re.compile("[,;]"), re.compile(r"[1-9]\d{0,2}(?:,\d{3})+")
_ONE_BRACE = re.compile(r"^\{([^{}]*)\}$")


@lru_cache(maxsize=1024)
def clean(text: str) -> str:
    """Plain notation of a short answer: Unicode, LaTeX spacing, delimiters, markdown and final stops looked through.

    Meant for strings of at most a few thousand characters. A dollar sign that is money becomes "¤".
    """
    if not text.isascii():
        text = _CIRCLED_RUN.sub(lambda m: ", ".join(_CIRCLED[c] for c in m.group() if c in _CIRCLED), text)
        text = _SMALL_FRACTION.sub(
            lambda m: f"\\frac{{{m[1].translate(_SUPERSCRIPTS)}}}{{{m[2].translate(_SUBSCRIPTS)}}}", text
        )
        text = _SUB_RUN.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
        text = _SUPER_RUN.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
        text = unicodedata.normalize("NFKC", text.translate(_CHARS)).translate(_CHARS)
    text = text.replace("&lt;", "<").replace("&gt;", ">")
    if "$" in text:
        text = text.replace("\\$", "¤")
        if text.count("$") == 1:
            text = _PRICE.sub(" ¤", text)
    text = without_markup(text.strip())
    if "\\" in text or "$" in text or "{" in text or "~" in text:
        text = _clean_latex(text)
    text = plain_numerals(_SPACE.sub(" ", text).strip())
    while text.endswith((".", ",", ";", ":", " !")) and not text.endswith(".."):
        text = text[:-1].rstrip()
    if text.startswith("{") and _BUILDER.match(text):
        return f"\\{text[:-1]}\\}}"
    braced = _ONE_BRACE.match(text)
    if braced is None:
        return text
    inner = braced.group(1).strip()
    is_set = _LISTED.search(_ROUND.sub("", inner)) and not _THOUSANDS.fullmatch(inner)
    return f"\\{{{inner}\\}}" if is_set else inner


def _clean_latex(text: str) -> str:
    if not any(sign in text for sign in "\\{^'~/") and "textdegree" not in text:
        return text.replace("$", " ")
    text = expand_macros(text)
    if not _INERT.issuperset(_COMMAND_NAMES.findall(text)):
        text = without_periods(text)
        for _ in range(3):
            shorter = _WRAPPED.sub(r" \1 ", text)
            if shorter == text:
                break
            text = shorter
        text = _VECTOR.sub(lambda m: f" {m[1] or m[2]} ", _OVER_POINTS.sub(r" \1 ", text))
        text = _SIZED.sub("", _DENIED.sub(r"\\ne ", text))
        text = _COMMAND.sub(lambda m: _COMMANDS[m.group(1)], text)
    if "/=" in text or "=/" in text or "= /" in text:
        text = _DENIED.sub(r"\\ne ", text)
    text = _DIGIT_GAP.sub("", text)
    text = text.replace("\\!", "").replace("\\%", "%").replace("{,}", ",")
    text = _DEGREE.sub("°", _DEGREE.sub("°", text))
    for _ in range(2):
        text = _IDLE_BRACES.sub(lambda m: next(filter(None, m.groups())), text)
    text = _SET_BRACES.sub(r"\\{\1\\}", text)
    text = _PRIMES.sub(r"\1", text)
    return _DELIMITERS.sub(" ", text)
