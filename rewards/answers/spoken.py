"""Answers that are said in a sentence: the one value that the last clause ends on, the one choice that it names.

This is what is left where no label or lead-in is known: "That leaves 5 apples", "共有 720 种排法", "It's Maine that has
the highest value". Nothing is taken from a sentence that asks, denies, doubts or offers alternatives, nor from a clause
with a second value. What stands right before a value must assert it: "exceeds 9", "step 9", "a multiple of 9" do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rewards.answers.denials import denies, spoils
from rewards.answers.nouns import changes_number
from rewards.answers.wording import without_reason

# Only the end of a text is looked at.
WINDOW = 600
_END = re.compile(r"(?:(?<![A-Z\d])[.!]|(?<=\d)\.)(?=\s|$)|[。！]|\n|;\s")
_ASKS = re.compile(r"[?？]")
_HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_TOKEN = re.compile(
    r"(?P<command>\\[A-Za-z]+)|(?P<number>\d+(?:[.,]\d+)*)|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)|(?P<sign>[^\s\w]|_)"
)
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "log",
        "ln",
        "lg",
        "exp",
        "sqrt",
        "pi",
        "lim",
        "max",
        "min",
    ]
)
_TEXT_COMMANDS = frozenset([r"\text", r"\mathrm", r"\textbf", r"\quad", r"\qquad", r"\therefore", r"\because"])
# A comma between digits divides nothing.
_CLAUSES = re.compile(r"(?<!\d)[,;:，；：、—–]|[,;:，；：、—–](?!\d)")
# In front of a value these only lead to it.
_LEADS = " =≈:：,，;；、—–∴"
_MAX_TAIL_WORDS, _MAX_TAIL_HAN = 4, 10
# Words that assert what they stand before: English, French, German, Spanish, Italian, Portuguese, Vietnamese,
# Indonesian, Russian, Dutch.
_ASSERT_WORDS = """is are was were equals equal leaves leave gives give gets get makes make measures reads totals costs
weighs yields has have had covers covered remain remains becomes pays paid earns spent spends needs
takes counted answer answers obtain obtains find finds total altogether exactly namely therefore
thus hence so then us approximately about only it's
est sont vaut valent fait font donne donnent mesure mesurent reste restent soit égale donc environ coûte contient
ist sind beträgt betragen ergibt ergeben hat haben also somit misst kostet etwa genau gleich bleiben verbleiben
es son vale valen da mide miden quedan queda igual entonces tanto hay respuesta
è sono misura restano rimangono quindi dunque uguale é são mede restam logo portanto resta
là bằng được còn có adalah sama jawabannya yaitu menjadi tersisa sebesar
равно равен равна равны составляет составит ответ получаем осталось будет zijn bedraagt blijven"""
_ASSERTS = frozenset(_ASSERT_WORDS.split())
# "a value of 9" asserts it, "a multiple of 9" does not; "equal to", "comes to"; "leaves us with"; "the point (0, 14)".
_QUANTITY = """values? total sum answer result length area perimeter volume height width measure probability average
mean median distance cost price slope"""
_ASSERTS_BEFORE = re.compile(
    rf"(?:\b(?:{'|'.join(_QUANTITY.split())})\s+of|\bequal\s+to|\bto\s+be|\bsatisf(?:y|ies)"
    r"|\b(?:comes?|came|adds?\s+up|amounts?|works?\s+out|igual|égale?|uguale|bằng)\s+(?:to\s+be|to|a|à)"
    r"|\b(?:leaves?|leaving|left)\s+\w+\s+with|\b(?:takes?|took|made|makes|end)\s+up"
    r"|\bthe\s+(?:ordered\s+)?(?:point|interval|set|vector|pair|triple|value|number))\s*$",
    re.IGNORECASE,
)
# Signs of Chinese and Japanese before a value that make it another one, or the name of something.
_HAN_SPOILS = re.compile("[负負第从從比以被由近近於于到至过過超]$")
# Said of a case that is not, or by somebody else.
_UNREAL = re.compile(
    r"^\W*(?:had|were|should)\s|\bwould\s+have\b|\b(?:many|some|others?|people|students|one|they|he|she|you)\s+(?:would|say|think)\b",
    re.IGNORECASE,
)
_DECLARES = re.compile(
    r"\b(?:answers?|solution|result|réponse|antwort|respuesta|risposta)\b|答案|答え|ответ", re.IGNORECASE
)
_NEVER_ONE = re.compile(r"<\||\b(?:print|return|lambda|def|import)\b|```")
# A line without words and without a relation is a value of its own.
_PROSE = re.compile(rf"[^\W\d_]{{2,}}.*[^\W\d_]{{2,}}|[{_HAN}]", re.DOTALL)
_GIVEN = re.compile(r"\W*([^=\s]+)\s*=\s*([-\d./]+)\W*")
_NEUTRAL = frozenset("()（）[]*\"'“”‘’「」$.。!,，")


def spoken_value(text: str) -> tuple[str, ...]:
    """What the last clause of a text ends on, with the words behind it first and then without; () if there is none."""
    sentence = last_sentence(text)
    if not sentence:
        return ()
    if sentence != text.strip() and not _PROSE.search(sentence) and "\n" in text:
        return () if denies(text) else (sentence,)
    tokens = list(_TOKEN.finditer(sentence))
    last = len(tokens) - 1
    while last >= 0 and not _is_value(tokens[last]):
        last -= 1
    tail = tokens[last + 1 :]
    if last < 0 or not _is_plain_tail(tail):
        return ()
    first = last
    while first > 0 and _is_mathematics(tokens[first - 1]):
        first -= 1
    # A closing bracket belongs to the value, a word to what it counts.
    end = next((token.start() for token in tail if token["word"]), len(sentence))
    # "é igual a 10": a preposition of one letter is no factor.
    while first < last and tokens[first]["word"] and len(tokens[first][0]) == 1 and _is_apart(tokens, first):
        first += 1
    value = _balanced(sentence[tokens[first].start() : end].strip(_LEADS + ".。 "))
    before = sentence[: tokens[first].start()]
    if not value or spoils(before) or _has_second_value(before) or not _asserts(before, tokens[:first]):
        return ()
    words = sentence[end:].strip(" .。!,，*")
    return (f"{value} {words}", value) if words else (value,)


def last_sentence(text: str, spared: str = "") -> str:
    """The last sentence without its reason; "" if it asks, denies or doubts, or what comes before is an answer, too.

    `spared` may deny, since it is what is looked for.
    """
    pieces = [piece.strip() for piece in _END.split(text[-WINDOW:]) if piece and piece.strip(" $*.\\[]()")]
    if not pieces or _ASKS.search(pieces[-1]) or text.rstrip(" $*").endswith(("?", "？")) or _NEVER_ONE.search(text):
        return ""
    if any(not _PROSE.search(piece) and "=" not in piece for piece in pieces[:-1]) or _gives_two(pieces):
        return ""
    sentence = without_reason(pieces[-1])
    if _UNREAL.search(sentence):
        return ""
    return "" if denies(sentence.replace(spared, " ") if spared else sentence) else sentence


def _gives_two(pieces: Sequence[str]) -> bool:
    """Whether two lines give one name two numbers."""
    given = [found for found in map(_GIVEN.fullmatch, pieces) if found]
    return any(one[1] == other[1] and one[2] != other[2] for one, other in pairwise(given))


def _asserts(before: str, tokens: Sequence[re.Match[str]]) -> bool:
    """Whether what stands right before a value asserts it."""
    words = [token for token in tokens if token["word"] or token["number"] or token["command"]]
    if not words or not before.strip(_LEADS + "$("):
        return False
    if before.rstrip(" $(")[-1:] in ("=", "≈", ":", "："):
        return True
    last = words[-1]["word"] or ""
    if re.search(f"[{_HAN}]$", last):
        return not _HAN_SPOILS.search(last)
    return last.casefold() in _ASSERTS or bool(_ASSERTS_BEFORE.search(before.rstrip(" $(")))


def _is_value(token: re.Match[str]) -> bool:
    """A number, or a sign or command that stands for one or closes one."""
    return bool(token["number"]) or token["command"] in ("\\pi", "\\infty") or token[0] in "π∞"


def _is_mathematics(token: re.Match[str]) -> bool:
    word = token["word"]
    if word:
        return (
            (len(word) == 1 and word.isascii())
            or word in _FUNCTIONS
            or (word.isupper() and word.isascii() and len(word) < 5)
        )
    return token["command"] not in _TEXT_COMMANDS


def _is_plain_tail(tail: Sequence[re.Match[str]]) -> bool:
    """Whether what follows a value is a unit, a counted noun or the like, and does not change it."""
    words = [token["word"] for token in tail if token["word"]]
    if any(token["command"] or (token["sign"] and token[0] not in _NEUTRAL | set("°%′″'^{}|")) for token in tail):
        return False
    han = sum(len(word) for word in words if re.search(f"[{_HAN}]", word))
    latin = [word for word in words if not re.search(f"[{_HAN}]", word)]
    return len(latin) <= _MAX_TAIL_WORDS and han <= _MAX_TAIL_HAN and not changes_number(" ".join(words))


def _has_second_value(before: str) -> bool:
    """Whether the clause that leads to a value holds another one, or one before it is an answer of its own."""
    *others, own = _CLAUSES.split(before)
    if re.search(r"\d", own):
        return True
    return any(re.search(r"\d", each) and (_DECLARES.search(each) or not _PROSE.search(each)) for each in others)


def _is_apart(tokens: Sequence[re.Match[str]], place: int) -> bool:
    """Whether a letter stands between blanks, in front of a number and behind a word."""
    behind = place > 0 and tokens[place - 1]["word"] and tokens[place - 1].end() < tokens[place].start()
    return bool(behind and tokens[place + 1]["number"] and tokens[place].end() < tokens[place + 1].start())


def _balanced(text: str) -> str:
    """The text without brackets at its ends that open or close nothing."""
    for opening, closing in ("()", "[]", "{}", "（）"):
        while text.count(closing) > text.count(opening) and text.endswith(closing) and not text.startswith(("[", "(")):
            text = text[:-1].rstrip()
        while text.count(opening) > text.count(closing) and text.startswith(opening) and not text.endswith(("]", ")")):
            text = text[1:].lstrip()
    return text


# What may stand right before a choice's words: "dark green" is not green.
_BEFORE = """the a an to that this it its they which will would each by because shows says called named likely clearly
indeed with in at on of for as see most certainly definitely le la les l' un une der die das ein eine el los las il lo o
they'll it'll there's that's"""
_BEHIND = """that which who each one ones the a an of in on at to by as for with because since has than criterion
theorem rule graph type kind color colour option choice other"""
_BEFORE_WORDS, _BEHIND_WORDS = (_ASSERTS | frozenset(words.split()) for words in (_BEFORE, _BEHIND))


def named_once(text: str, choices: Sequence[str]) -> int | None:
    """The place of the only choice whose words stand in a text, or None.

    Args:
        text: normalised as the choices are (`text.normal_text`).
        choices: normal texts; those without a word of three letters (or a Chinese sign) are never found.
    """
    text, choices = _HYPHEN.sub(" ", text), [_HYPHEN.sub(" ", choice) for choice in choices]
    if not choices or len(text) > WINDOW:
        return None
    places = [[match.span() for match in _whole(choice, text)] for choice in choices]
    rest = text
    for spans in places:
        for begin, end in spans:
            rest = rest[:begin] + " " * (end - begin) + rest[end:]
    # A choice itself may deny, such as "less than".
    if denies(rest):
        return None
    found = [index for index, spans in enumerate(places) if spans]
    # "less than" inside "not less than": the longer one is named.
    kept = [
        index
        for index in found
        if not all(
            any(
                low <= begin and end <= high and (low, high) != (begin, end)
                for other in found
                for low, high in places[other]
            )
            for begin, end in places[index]
        )
    ]
    if len(kept) != 1:
        return None
    begin, end = places[kept[0]][0]
    last = re.search(r"[^\W\d_]+(?:['’][^\W\d_]+)?$", text[:begin].rstrip())
    follows = re.match(r"\s*([^\W\d_]+)|[-'’]", text[end:])
    # A sentence may begin or end with it, and a sign may stand beside it.
    fits = last is None or last[0] in _BEFORE_WORDS or re.search(f"[{_HAN}]$", last[0])
    goes_on = follows is None or (follows[1] or "") in _BEHIND_WORDS or re.match(f"[{_HAN}]", follows[1] or "")
    return kept[0] if fits and goes_on else None


_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")


def _whole(choice: str, text: str) -> list[re.Match[str]]:
    """Where a choice stands in a text as whole words."""
    if not re.search(rf"[^\W\d_]{{3}}|[{_HAN}]", choice) or choice in ("the", "and", "yes", "not"):
        return []
    begins = r"(?<![^\W_])" if re.match(r"[a-z0-9à-ÿ]", choice) else ""
    ends = r"(?![^\W_])" if re.search(r"[a-z0-9à-ÿ]$", choice) else ""
    return list(re.finditer(begins + re.escape(choice) + ends, text))


_CUE = """options? choices? statements? letters? answers? réponse antwort respuesta risposta resposta ответ"""
_CUED = re.compile(
    rf"(?:\b(?:{'|'.join(_CUE.split())}|đáp\s+án)\b|[选選][择擇]?|只有|选项|答案)"
    r"(?:\s*(?:is|es|est|ist|è|é|là|correcta|correcte|是|为|:|：))*\s*[(（]?\s*([A-H])(?![A-Za-z'’])"
    r"|(?<![A-Za-z])[(（]?([A-H])[)）]?\s*(?:项|選項|选项|is\s+(?:the\s+)?(?:correct|right|answer|one)|[(（])",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"(?<![A-Za-z])A\s+(?!and\b|or\b|is\b)[a-z]{2}")
_ANY_LETTER = re.compile(r"(?<![A-Za-z\\$])[A-H](?![A-Za-z'’=∠])")


def cued_letter(text: str) -> str | None:
    """The only letter that a sentence names as a choice; None where it names another one as well."""
    sentence = last_sentence(text)
    cued = {letter.upper() for found in _CUED.finditer(sentence) for letter in found.groups() if letter}
    if len(cued) != 1:
        return None
    letters = set(_ANY_LETTER.findall(_ARTICLE.sub(" ", sentence))) | cued
    return cued.pop() if letters == cued else None
