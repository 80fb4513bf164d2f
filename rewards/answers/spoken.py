"""Answers that are said in a sentence: the one value that the last clause ends on, the one choice that it names.

This is what is left where no label or lead-in is known: "That leaves 5 apples", "共有 720 种排法", "It's Maine that has
the highest value". Nothing is taken from a sentence that asks, denies, doubts or offers alternatives, nor from a clause
with a second value. What stands right before a value must assert it: "exceeds 9", "step 9", "a multiple of 9" do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rewards.answers.denials import denies, either, spoils
from rewards.answers.grammar import KNOWN_WORDS
from rewards.answers.nouns import changes_number
from rewards.answers.number_words import numbers_in_digits
from rewards.answers.wording import without_reason

# Only the end of a text is looked at.
WINDOW = 600
_END = re.compile(r"(?:(?<![A-Z\d])[.!]|(?<=\d)\.)(?=\s|$)|[。！]|\n|;\s")
_ASKS = re.compile(r"[?？]")
_HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_TOKEN = re.compile(
    r"(?P<command>\\[A-Za-z]+)|(?P<number>\d+(?:[.,]\d+)*)|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)|(?P<sign>[^\s\w]|_)"
)
_FUNCTIONS = KNOWN_WORDS | {"lim", "max", "min"}
_TEXT_NAMES = "text mathrm textbf quad qquad therefore because to implies Rightarrow"
_TEXT_COMMANDS = frozenset(f"\\{name}" for name in _TEXT_NAMES.split())
_ARROWS = ("→", "⇒", "⟹")
# A comma between digits divides nothing.
_CLAUSES = re.compile(r"(?<!\d)[,;:，；：、—–]|[,;:，；：、—–](?!\d)")
# In front of a value these only lead to it.
_LEADS = " =≈:：,，;；、∴"
_MAX_TAIL_WORDS, _MAX_TAIL_HAN = 4, 10
# Words that assert what they stand before: English, French, German, Spanish, Italian, Portuguese, Vietnamese,
# Indonesian, Russian, Dutch.
_ASSERT_WORDS = """is are was were equals equal leaves leave gives give gets get makes make measures reads totals costs
weighs yields has have had covers covered remain remains becomes pays paid earns spent spends needs
takes counted count shows show attains reaches
answer answers obtain obtains find finds total altogether exactly namely therefore
thus hence so then us approximately about only it's
est sont vaut valent fait font donne donnent mesure mesurent reste restent soit égale donc environ coûte contient
ist sind beträgt betragen ergibt ergeben hat haben also somit misst kostet etwa genau gleich bleiben verbleiben
es son vale valen da mide miden quedan queda igual entonces tanto hay respuesta
è sono misura restano rimangono quindi dunque uguale é são mede restam logo portanto resta
gibt insgesamt flächeninhalt umfang wert volumen länge höhe winkel valeur aire périmètre
là bằng được còn có adalah sama jawabannya yaitu menjadi tersisa sebesar
равно равен равна равны составляет составит ответ получаем осталось будет zijn bedraagt blijven"""
_ASSERTS = frozenset(_ASSERT_WORDS.split())
# Right before a number these count, compare or point to something else.
_POINTS_AWAY_WORDS = """of to by from with at in on for over under above below between than times until before after
toward towards near around without minus plus and or nor but as per every each any some all exceeds exceed step
steps question problem figure fig page case number no part row column line level day week month year age aged chapter
section grade class room side angle triangle point option choice statement equation multiple divisor factor power root
square cube base mod modulo a an the this that these those his her their my your our its more less fewer greater first
second third next last another other only add subtract multiply divide remove given if when let say try check into onto
within across through past vs versus de du des à au aux von zu bei mit um auf für nach vor über unter negative négatif
négative était war waren del al con por para desde hasta lost owes refuse start started begins began needs need"""
_POINTS_AWAY = frozenset(_POINTS_AWAY_WORDS.split())
# "a value of 9" asserts it, "a multiple of 9" does not; "equal to", "comes to"; "leaves us with"; "the point (0, 14)".
_QUANTITY = """values? total sum answer result length area perimeter volume height width measure probability average
mean median distance cost price slope difference height angle radius diameter circumference"""
_ASSERTS_BEFORE = re.compile(
    rf"(?:\b(?:{'|'.join(_QUANTITY.split())})\s+of|\bequal\s+to|\bto\s+be|\bsatisf(?:y|ies)"
    r"|\b(?:comes?|came|adds?\s+up|amounts?|works?\s+out|igual|égale?|uguale|bằng)\s+(?:to\s+be|to|a|à)"
    r"|\bha(?:s|ve)\s+(?:covered|travell?ed|walked|driven|earned|saved|scored|reached|counted|collected|paid|spent)"
    r"|\b(?:arrived?|stands?)\s+at|\bmarked\s+up\s+to|\b(?:corresponds?|rises|rose|falls|fell|drops|dropped|grows|grew)\s+to"
    r"|\b(?:est|es|é)\s+(?:donc\s+)?de|\bil\s+y\s+a|\b(?:end\s+up|left)\s+with|\b(?:leaves?|leaving|left)\s+\w+\s+with|\b(?:takes?|took|made|makes|end)\s+up"
    r"|\b(?:is|are|at|namely)\s+the\s+(?:ordered\s+)?(?:point|interval|set|vector|pair|triple|value|number))\s*$",
    re.IGNORECASE,
)
# Before a point or an interval.
_ASSERTS_PLACE = re.compile(
    r"(?:\b(?:is|are|lies?|cross\w*(?:\s+the\s+[xy]-axis)?|located|occurs?|meets?|intersects?)\s+at|\bvertex|\bthrough(?:\s+the\s+point)?"
    r"|\b(?:in|de)creasing\s+on(?:\s+the\s+interval)?)\s*$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"[(\[].*,.*[)\]]")
# Signs of Chinese and Japanese before a value that make it another one, or the name of something.
_HAN_SPOILS = re.compile("[负負第从從比以被由近近到至过過超差]$|(?<!等)[于於]$")
# Said of a case that is not, or by others.
_UNREAL = re.compile(
    r"^\W*(?:had|were|should)\s|\bwould\s+have\b|\b(?:many|some|others?|people|students|one|they|he|she|you)\s+(?:would|say|think)\b"
)
_DECLARES = re.compile(
    r"\b(?:answers?|solution|result|réponse|antwort|respuesta|risposta)\b|答案|答え|ответ", re.IGNORECASE
)
# Denial, doubt and change in languages that `denials` does not read; some of the words mean something else in English.
_FOREIGN = r"""nunca; jamás; falso; quizás?; tal vez; si; mitad; sin; salvo; excepto; mai; forse; se; metà; falsa;
senza; não; talvez; metade; sem; không; chưa; nếu; có thể; nửa; trừ; bukan; tidak; jika; mungkin; setengah; salah;
kecuali; не; нет; если; возможно; половин\w*; неверн\w*; кроме; niet; geen; als; misschien; helft; ignoring; until;
once; refus\w*; in order to; can it; one of; determine; lorsque; cuando; tampoco; nee; laut; inverso; opuesto;
cuadrado; opposé; gegenteil; absolute value; ceases?; lest; neglect\w*; hypothe\w*; had it; were it; rumou?r\w*;
suspect\w*; allegedly; supposedly; so-called; joke\w*; kidding; trick\w*; fool\w*; ironically; kehrwert; quadrat;
carré; inverse; presque; casi; quase; quasi; doble; doppio; dobro; triple; tercio; terzo; error\w*; faulty; absurd\w*;
nope; provided; such that; find all; find the; friend\w*; common; reject\w*; omit\w*; avoid\w*; outside; lacks?;
miss(?:es|ed|ing)?; (?:its|whose|a) (?:square|cube|third|quarter|fifth);
the (?:square|cube|reciprocal|inverse|negative|complement|supplement) (?:is|of it|equals)"""
_FOREIGN_DENIAL = re.compile(
    rf"\b(?:{either(_FOREIGN)})\b|[设設令别猜零负負]|似乎|好像|平方后|陷阱|有问题|淘汰|划掉|排除|下一个"
    r"|的(?:倍|阶乘|几|次方|立方|因数|补角|余角|对数|一部分)|分之|才怪|进制|答えた|验证|就好了|时候|直到|之一|双子|仮に|とおく|逆数"
)
_NEVER_ONE = re.compile(r"<\||\b(?:print|return|lambda|def|import)\b|```")
# A line without words and without a relation is a value of its own.
_PROSE = re.compile(rf"[^\W\d_]{{2,}}.*[^\W\d_]{{2,}}|[{_HAN}]", re.DOTALL)
_GIVEN = re.compile(r"\W*([^=\s]+)\s*=\s*([-\d./]+)\W*")
# "When x = 2, the value is 11": what the question gave.
_GIVEN_FIRST = re.compile(
    r"^\W*(?:(?:so|thus|hence|therefore),?\s+)?(?:when|for|at)\s+\$?[a-z]\s*=\s*[-\d./]+\$?,\s*(?:we\s+have\s+)?(?=the\s|\$?[a-z]\s*=|f\()",
    re.IGNORECASE,
)
# A remark in brackets behind what is said; the clause that draws the conclusion; a value that is set apart.
_REMARK = re.compile(r"(?<=\S)\s*\([^()]*[^\W\d_]{2}[^()]*\)(?=\W*$)")
_DRAWN = re.compile(r"[,，]\s*(?:which|ce\s+qui)\s+(?=[^,，]*\d[^,，]*$)")
_BOLD = re.compile(r"\*\*([^*]{1,60})\*\*")
_COMMANDS, _LATIN = re.compile(r"\\[A-Za-z]+"), re.compile("[^\\W\\d_]")
_STEPS = re.compile(
    r"\n|[,，;；→⇒⟹]|=>|\\(?:implies|Rightarrow|to)(?![A-Za-z])|\b(?:and|so|hence|thus|then|therefore"
    r"|(?:which|this)\s+(?:gives|yields|means)|giving|yielding)\b|所以|故|则|∴"
)
_RESULT = re.compile(r"([A-Za-z]{1,2})\s*=\s*([^=<>]{1,40})")
_NEUTRAL = frozenset("()（）[]*\"'“”‘’「」$.。!,，")
_LEAD = re.compile(r"([^\W\d_]+)[\s(=≈:]*$")
_LED = re.compile(r"([^\W\d_]+)[\s(=≈:]*[-+]?\d[^\W_]*\W*$")
_CONCLUDES = re.compile(
    r"^\s*(?:so|thus|hence|therefore|then|which)\b|^\s*(?:所以|因此|故|则|从而|于是)", re.IGNORECASE
)
# "It is most likely a polynomial", "it's Maine that has ...", "they will repel each other": what asserts a choice's
# words stands right before them ("dark green" is not green), and nothing behind makes them a part of something else.
_CHOSEN = re.compile(
    r"(?:^|(?:\b(?:is|are|was|were|will|answer|namely|ist|sind|est|sont|es|son|è|é|là|adalah)|['’]s|[:：=]|是|为|選|选)"
    r"(?:\s+(?:most\s+)?(?:likely|clearly|indeed|therefore|thus|definitely|simply|just))?(?:\s+(?:a|an|the|le|la|un|une|ein|eine|der"
    r"|die|das))?)\W{0,3}$"
)
_CHOSEN_END = re.compile(
    r"^\W{0,3}(?:$|(?:that|which|one|each|than|the|is|has|as\s+the)\b)|^\s*[(（][^()（）]*[)）]\W*$|^[,，;；。.]\s"
)
_JOINS = re.compile(r"\b(?:or|and|nor|both|all)\b|[/|]|[或和与及]|、")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_CUED = re.compile(
    r"(?:\b(?:answer|option|choice|letter|réponse|antwort|respuesta|risposta|resposta|ответ)(?:\s+(?:correcta|correcte|corretta))?"
    r"\s*(?:is|es|est|ist|è|é|:)|\bđáp\s+án\s+(?:là|đúng\s+là)|(?:^|[，,；。\s故应])选(?:择|項|项)?|答案(?:是|为|:|：)|只有)"
    r"\s*(?:option\s+|choice\s+)?[(（]?([A-H])(?![A-Za-z'’])(?![)）]?\s*(?:and|or|,|、|和|或|的|y\b|e\b|et\b|und\b))"
    r"|(?:^|\b(?:option|choice|statement)\s+|[，,；。\s])[(（]?([A-H])[)）]?\s*(?:项?(?:是)?(?:正确|符合)|is\s+(?:the\s+)?(?:correct|right|one))",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"(?<![A-Za-z])A\s+(?!and\b|or\b|is\b)[a-z]{2}")
_ANY_LETTER = re.compile(r"(?<![A-Za-z\\$])[A-H](?![A-Za-z'’=∠])")
_DIGIT, _HAN_END = re.compile(r"\d"), re.compile(f"[{_HAN}]$")
# What stands before "x = 5" where that is the result of something, and how a sentence begins that works it out.
_LEADS_TO = re.compile(
    r"(?:\b(?:that|gives?(?: us)?|giving|yields?|yielding|get|find|obtain|is|by|so|thus|hence|therefore|then|have"
    r"|quindi|donc|also|out to be)|[→⇒⟹]|[,，](?:so|得)?|所以|因此|得到?|故|则|面积|周长|体积)\W*$",
    re.IGNORECASE,
)
_WORKING = re.compile(
    r"^\W*(?:(?:so|then|thus|hence),?\s+)?(?:by\s+)?(?:(?!tak|lett|try|assum|suppos|guess|pick|choos|check|test|giv)[a-z-]+ing\b|from\b)",
    re.IGNORECASE,
)
# The value of one case only.
_CASE = re.compile(r"\s*(?:时|的时候|の?とき)")
_VALUE_FIRST = re.compile(
    r"^\W*(?:(?:so|thus|hence|therefore|then|finally|of\s+these|exactly|in\s+(?:total|all))[,\s]+)*(?:a\s+total\s+of\s+)?"
    rf"(?P<the>the\s+)?(?P<value>\d+(?:[.,/]\d+)*(?:\s?°)?)(?P<noun>(?:\s+[^\W\d_]+){{0,2}}?)\s+(?:(?:is|are)\s+(?:the|our)"
    rf"\s+(?:(?:total|required|desired|final|correct)\s+)?(?:number|{'|'.join(_QUANTITY.split())})\b"
    r"|of\s+(?:them|the\s+[a-z]+)\s+(?:is|are|were)\b"
    r"|(?P<does>is|are|was|were|have|has|remain(?:ed|s)?)\b(?!\s+(?:an?|the|what|too|so|that|this|left|right)\b))[^\d,;:]*$",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"\b(?:more|fewer|less|than|start\w*|beg[aiu]n|given|known|initial\w*|original\w*|previous\w*|next|other\w*|guess|close"
    r"|near|small\w*|larg\w*|big\w*|left\s+out|miss\w*|remov\w*|subtract\w*|add\w*|wrong|same|equal|each|every|per|bound|limit"
    r"|maximum|minimum|before|after|until|aim\w*|target\w*)\b",
    re.IGNORECASE,
)


def spoken_value(text: str) -> tuple[str, ...]:
    """What the last clause of a text ends on, with the words behind it first and then without; () if there is none."""
    sentence = last_sentence(text)
    if not sentence:
        return ()
    if sentence != text.strip() and not _PROSE.search(sentence) and "\n" in text:
        return () if denies(text) else (sentence,)
    bold = _BOLD.findall(sentence)
    if len(bold) == 1 and _DIGIT.search(bold[0]) and not spoils(sentence) and not _ANOTHER.search(sentence):
        return (bold[0].strip(" ."),)
    sentence = numbers_in_digits(sentence)
    if first := _value_first(sentence):
        return first
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
    if not value or spoils(before) or _has_second_value(before, value) or _CASE.match(sentence[end:]):
        return ()
    is_said = _asserts(before, tokens[:first]) or ("=" in value and _LEADS_TO.search(before))
    if not is_said and not (_PLACE.fullmatch(value) and _ASSERTS_PLACE.search(before)):
        return ()
    words = sentence[end:].strip(" .。!,，*")
    return (f"{value} {words}", value) if words else (value,)


def last_sentence(text: str) -> str:
    """The last sentence without its reason; "" if it asks, denies or doubts, or what comes before is an answer, too."""
    pieces = [piece.strip() for piece in _END.split(text[-WINDOW:]) if piece and piece.strip(" $*.\\[]()")]
    if not pieces or _ASKS.search(pieces[-1]) or text.rstrip(" $*").endswith(("?", "？")) or _NEVER_ONE.search(text):
        return ""
    if any(not _PROSE.search(piece) and "=" not in piece for piece in pieces[:-1]) or _gives_two(pieces):
        return ""
    ends = [found[1] for found in map(_LED.search, pieces) if found] if len(pieces) > 1 else []
    if len(ends) > 1 and _LED.search(pieces[-1]) and ends[-1] in ends[:-1] and not _CONCLUDES.match(pieces[-1]):
        return ""
    sentence = _REMARK.sub("", _GIVEN_FIRST.sub("", without_reason(pieces[-1])))
    if drawn := _DRAWN.search(sentence):
        sentence = sentence[drawn.end() :]
    low = sentence.lower()
    return "" if _UNREAL.search(low) or _FOREIGN_DENIAL.search(low) or denies(low) else sentence


def worked_out(text: str) -> str | None:
    """The last of several equations that work out one unknown ("3x = 12 and x = 4"), None for any other text."""
    pieces = [piece.strip(" .。$") for piece in _STEPS.split(text) if piece.strip(" .。$")]
    result = _RESULT.fullmatch(pieces[-1]) if 2 <= len(pieces) <= 8 else None
    if result is None or denies(text):
        return None
    name = re.compile(rf"(?<![A-Za-z\\]){result[1]}(?![A-Za-z])")
    earlier = [_COMMANDS.sub("", piece) for piece in pieces[:-1]]
    are_steps = all("=" in piece and name.search(piece) and not _LATIN.search(name.sub("", piece)) for piece in earlier)
    is_given = any(name.fullmatch(side.strip()) for piece in earlier for side in piece.split("="))
    return pieces[-1] if are_steps and not is_given else None


def _gives_two(pieces: Sequence[str]) -> bool:
    """Whether two lines give one name two numbers."""
    given = [found for found in map(_GIVEN.fullmatch, pieces) if found]
    return any(one[1] == other[1] and one[2] != other[2] for one, other in pairwise(given))


def _asserts(before: str, tokens: Sequence[re.Match[str]]) -> bool:
    """Whether what stands right before a value asserts it."""
    words = [token for token in tokens if token["word"] or token["number"] or token["command"]]
    if not words or not before.strip(_LEADS + "$("):
        return False
    before = before.rstrip(" $(")
    if before[-1:] in ("=", "≈", ":", "：") or (before[-1:] in _ARROWS and "=" in before):
        return True
    last = words[-1]["word"] or ""
    if _HAN_END.search(last):
        return not _HAN_SPOILS.search(last)
    if last.casefold() in _ASSERTS or _ASSERTS_BEFORE.search(before):
        return True
    # The only value of a clause of some words is what it says, unless the word before it points away.
    latin = [token["word"] for token in words if token["word"] and not _HAN_END.search(token["word"])]
    return len(latin) >= 3 and latin[-1] == last and last.casefold() not in _POINTS_AWAY and not last.isupper()


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
    return token["command"] not in _TEXT_COMMANDS and token[0] not in _ARROWS


def _is_plain_tail(tail: Sequence[re.Match[str]]) -> bool:
    """Whether what follows a value is a unit, a counted noun or the like, and does not change it."""
    words = [token["word"] for token in tail if token["word"]]
    if any(token["command"] or (token["sign"] and token[0] not in _NEUTRAL | set("°%′″'^{}|²³")) for token in tail):
        return False
    han = sum(len(word) for word in words if re.search(f"[{_HAN}]", word))
    latin = [word for word in words if not re.search(f"[{_HAN}]", word)]
    return len(latin) <= _MAX_TAIL_WORDS and han <= _MAX_TAIL_HAN and not changes_number(" ".join(words))


def _value_first(sentence: str) -> tuple[str, ...]:
    """The value that a sentence begins with and calls a quantity, or of which it says that so many do something."""
    found = _VALUE_FIRST.match(sentence)
    if not found or (found["the"] and found["does"]) or spoils(sentence) or _ANOTHER.search(sentence):
        return ()
    if changes_number(found["noun"]):
        return ()
    return (f"{found['value']}{found['noun']}".strip(), found["value"]) if found["noun"] else (found["value"],)


def _has_second_value(before: str, value: str) -> bool:
    """Whether the clause that leads to a value holds another one, or one before it is an answer of its own.

    What an equation is made of before its result ("Solving 2x = 10 gives x = 5") is none.
    """
    *others, own = _CLAUSES.split(before)
    is_worked_out = _WORKING.search(before) or before.rstrip()[-1:] in _ARROWS
    if "=" in value and is_worked_out and _LEADS_TO.search(before):
        return False
    if _DIGIT.search(own) and not _WORKING.search(own):
        return True
    lead = _LEAD.search(own)
    if any(_DIGIT.search(each) and (_DECLARES.search(each) or not _PROSE.search(each)) for each in others):
        return True
    # "It is 3, it is 9" gives two values alike.
    leads = [found[1] for found in map(_LED.search, others) if found]
    return bool(lead) and not _CONCLUDES.match(own) and lead[1] in leads


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


def named_once(text: str, choices: Sequence[str], is_asserted: bool = False) -> int | None:
    """The place of the only choice whose words a text asserts, or None.

    Args:
        is_asserted: something else asserts it, such as the letter beside it; then it only has to be named.
        text: normalised as the choices are (`text.normal_text`).
        choices: normal texts; those without a word of three letters (or a Chinese sign) are never found.
    """
    if not choices or len(text) > WINDOW:
        return None
    text, choices = _HYPHEN.sub(" ", text), [_HYPHEN.sub(" ", each) if "-" in each else each for each in choices]
    places = [[match.span() for match in _whole(choice, text)] for choice in choices]
    rest = text
    for spans in places:
        for begin, end in spans:
            rest = rest[:begin] + " " * (end - begin) + rest[end:]
    # A choice itself may deny, such as "less than".
    if spoils(rest) or _FOREIGN_DENIAL.search(rest.lower()) or _JOINS.search(rest):
        return None
    # "less than" inside "not less than": the longer one is named.
    kept = [index for index, spans in enumerate(places) if spans and not _is_inside(index, places)]
    if len(kept) != 1 or len(places[kept[0]]) != 1:
        return None
    begin, end = places[kept[0]][0]
    return kept[0] if is_asserted or (_CHOSEN.search(text[:begin]) and _CHOSEN_END.search(text[end:])) else None


def _is_inside(index: int, places: Sequence[Sequence[tuple[int, int]]]) -> bool:
    """Whether a choice stands only inside longer ones."""
    others = [span for spans in places for span in spans]
    return all(
        any(low <= begin and end <= high and (low, high) != (begin, end) for low, high in others)
        for begin, end in places[index]
    )


def _whole(choice: str, text: str) -> list[re.Match[str]]:
    """Where a choice stands in a text as whole words."""
    if not re.search(rf"[^\W\d_]{{3}}|[{_HAN}]", choice) or choice in ("the", "and", "yes", "not"):
        return []
    if choice not in text:
        return []
    begins = r"(?<![^\W_])" if re.match(r"[a-z0-9à-ÿ]", choice) else ""
    ends = r"(?![^\W_])" if re.search(r"[a-z0-9à-ÿ]$", choice) else ""
    return list(re.finditer(begins + re.escape(choice) + ends, text))


def cued_letter(text: str) -> str | None:
    """The only letter that a sentence names as a choice; None where it names another one as well."""
    sentence = last_sentence(text)
    cued = {letter.upper() for found in _CUED.finditer(sentence) for letter in found.groups() if letter}
    if len(cued) != 1:
        return None
    letters = set(_ANY_LETTER.findall(_ARTICLE.sub(" ", sentence))) | cued
    return cued.pop() if letters == cued else None
