"""What surrounds an answer in words: lead-ins, labels, closings and reasons that are taken off before it is read.

Words are taken off only if they assert. Any word of denial, doubt or change in them ("not", "perhaps", "twice")
leaves the text as it is, and `denies` keeps what is left from being read as a value. English, Chinese, Japanese,
French and German are read; texts come with full-width marks or with the plain ones of notation.clean.
"""

from __future__ import annotations

import re

# Words under which nothing is asserted, or something else is.
_DENIAL = re.compile(
    r"n['’]t\b|\b(?:not|non|no|never|none|nor|neither|nothing|nobody|cannot|without|unless|if|whether|when(?:ever)?"
    r"|suppos\w+|assum\w+|maybe|perhaps|probabl[ey]|possibl[ey]|might|may|could|unlikely|uncertain|unsure|doubt\w*"
    r"|guess\w*|almost|nearly|barely|hardly|wrong\w*|incorrect\w*|false\w*|untrue|mistak\w+|erroneous\w*|invalid"
    r"|impossible|contradict\w*|rejected|eliminat\w+|exclu\w+|discard\w*|deny|denie[sd]|fails?|failed|disagree\w*"
    r"|twice|thrice|doubled?|tripled?|halve[ds]?|half\s+(?:of|the|a|as|my|our)|plus|minus|squared|cubed|mod|modulo"
    r"|multiplied|divided|(?:added|equal)\s+to\s+or|subtracted|(?:increased|decreased|reduced)\s+by"
    r"|(?:more|less|fewer|greater|bigger|smaller|larger|higher|lower|other|rather|instead)\s+(?:than|of)"
    r"|at\s+(?:least|most)|opposite|exclude|instead|rul(?:e[sd]?|ing)\s+out|ruled\s+out"
    r"|pas|jamais|aucune?|faux|fausses?|mauvaise?s?|sauf|sans|peut-être|moitié|fois|moins|ne|erronée?s?|impossible"
    r"|nicht|keine?[nmrs]?|niemals|nie|falsch\w*|weder|ohne|außer|wenn|falls|vielleicht|doppelt?\w*|hälfte"
    r"|mehr|weniger|mindestens|höchstens|unmöglich)\b|(?<!of )\btimes\b|\bn['’](?=[aeiouyéêh])"
    r"|[不非没沒无無未错錯误誤否除]|可能|也许|或许|如果|假设|假如|若|两倍|倍|一半|大于|小于|多于|少于|至少|至多|最多有"
    r"|超过|加|减|的平方|的立方|相反数|倒数|绝对值|ない|ません|なし|でな|違|違い|間違|かも|たぶん|おそらく|もし|以外|半分|二乗"
    r"|以上で|以下で|未満|より大|より小",
    re.IGNORECASE,
)
# Words that join alternatives or leave something out: they may stand inside an answer, never before it.
_ALTERNATIVE = re.compile(
    r"\b(?:or|either|except|excluding|but|than|oder|ou|soit)\b|或者?|还是|以外|か(?=[はが]|$)", re.IGNORECASE
)
# What denies nothing although it holds such a word.
_HARMLESS = re.compile(
    r"不等式(?:组|的)?|无理数|非负|非零|不同|不变|误差|未知数|错位|加法|减法|倍数|公倍数|不动点|不规则"
    r"|\b(?:non-?negative|if and only if|plus sign|no\.\s*(?=\d))|比例|由以上|综上",
    re.IGNORECASE,
)
# A value of the answer, or of one letter, put through a function is another value.
_CHANGED = re.compile(
    r"\b(?:square|cube|roots?|reciprocal|inverse|negative|negation|log\w*|third|quarter|fifth|double|triple|multiple"
    r"|factor|ratio|sum|difference|product|quotient|power|percent\w*|fraction|part|value|factorial|complement"
    r"|supplement)\s+(?:of|between|to)\s+(?:the\s+|my\s+|our\s+)?(?:(?:final|correct|right)\s+)?"
    r"(?:answer|result|solution|\$?[a-z]\$?(?![\w']|\s+and\b))",
    re.IGNORECASE,
)
_PLAIN_VALUE = re.compile(r"(?<!absolute )\bvalues?\s+of\b", re.IGNORECASE)

_CONNECTIVE = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then|now|finally|consequently|accordingly|clearly|obviously|overall|indeed|also"
    r"|in\s+(?:conclusion|summary|total|the\s+end|short)|to\s+conclude|as\s+a\s+result|but|and|that\s+is|which\s+means"
    r"|approximately|about|roughly|around|exactly|approx\.?|precisely|simply|just|equal\s+to|given\s+by"
    r"|(?:we|i|you|one)\s+(?:\w+ly\s+)?(?:can\s+)?(?:then\s+)?(?:get|have|find|obtain|see|conclude|know|deduce|think"
    r"|believe|say)|(?:this|which|it|that)\s+(?:gives?|yields?|means?|implies|follows)(?:\s+us)?|follows"
    r"|donc|ainsi|alors|par\s+conséquent|d['’]où|finalement|enfin|environ|exactement|égale?s?\s+à"
    r"|on\s+(?:obtient|trouve|a)|nous\s+(?:obtenons|trouvons|avons)"
    r"|also|daher|somit|folglich|deshalb|damit|schließlich|ungefähr|etwa|genau|gleich|wir\s+erhalten|es\s+gilt)"
    r"(?![\w(])(?:\s+(?:that|que|dass|:))?"
    r"|\\(?:therefore|approx|implies|Rightarrow|because)(?![A-Za-z])|[=:,∴≈]|⇒|⟹"
    r"|(?:所以|因此|因而|于是|从而|那么|综上(?:所述)?|由(?:此|以上|上|题意|题)?(?:可知|可得|得)|可知|可得|可见|解得|求得"
    r"|得到|得出|显然|计算得|经计算|最终|最后|故|则|即|得|解|知|约为?|大约|恰好?|共有?|一共有?|总共有?"
    r"|したがって|従って|よって|ゆえに|故に|つまり|すなわち|以上より|これより|だから|約)(?![不非没未无可]))"
    r"\s*[,:，：、]*\s*",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^(?:(?:the|my|our|your|la|le|l['’]|notre|die|das|unsere)\s*)?"
    r"(?:(?:correct|right|final|best|required|desired|numerical|bonne|richtige|korrekte|endgültige)\s+)*"
    r"(?:ans(?:wer)?|result|solution|réponse|résultat|antwort|lösung|ergebnis)s?"
    r"(?:\s+(?:finale|correcte|exacte))?(?:\s+(?:to|of|for)\s+(?:the|this)\s+(?:question|problem|exercise))?"
    r"(?:\s+(?:is|are|was|will\s+be|would\s+be|should\s+be|must\s+be|est|sont|ist|sind|lautet))?"
    r"(?![\w(])\s*[:：=,]*\s*"
    r"|^(?:本题|该题|此题)?(?:的)?(?:正确|最终|最后|标准)?的?(?:答案|结果|答え|解答|正解|答|解)"
    r"(?:是|为|就是|应为|应是|应该是|は)?(?![不非没未无の])\s*[:：,，]*\s*",
    re.IGNORECASE,
)
_LETTER_AHEAD = r"(?=[(\[（]?\s*(?:\$|\\text)?[A-Za-z](?:[^\w]|(?-i:[A-Z])|$|[一-鿿]))"
_CHOICE_LABEL = re.compile(
    r"^(?:(?:i|we|i['’]ll|i\s+would)\s+)?(?:choose|pick|select|go\s+with)\s+"
    + _LETTER_AHEAD
    + r"|^(?:the\s+|la\s+|die\s+|l['’])?(?:(?:correct|right|final|best|bonne|richtige)\s+)?"
    r"(?:options?|choices?|letters?|réponse|lettre|buchstabe)\s*:?\s+"
    + _LETTER_AHEAD
    + r"|^(?:la|die)\s+"
    + _LETTER_AHEAD
    + r"|^(?:richtig|correct|right|juste)\s+(?:is|ist|est)\s+"
    + _LETTER_AHEAD
    + r"|^(?:本题|此题|该题)?(?:故|应|应该|只能)?(?:选择|选)(?:项)?(?:是|为)?\s*[:：]?\s*"
    + _LETTER_AHEAD
    + r"|^(?:正确)?的?(?:选项|選択肢)(?:是|为|は)?\s*[:：]?\s*"
    + _LETTER_AHEAD,
    re.IGNORECASE,
)
_OTHERS_OUT = re.compile(
    r"^(?:(?:it|the\s+answer)\s*(?:is|'s)\s+)?(?:neither|not)\s+\(?[A-H]\)?(?:\s*(?:,|\bor\b|\bnor\b|\band\b)\s*\(?[A-H]\)?){0,6}"
    r"\s*,\s*(?=but\b|it\b|the\b|so\b|rather\b)(?:but\s+|rather\s+)?",
    re.IGNORECASE,
)
_VERB = (
    r"(?:(?:is|are|was|were|be|becomes?|comes?\s+(?:out\s+)?to|amounts?\s+to|totals?|measures?|gives?(?:\s+us)?|yields?"
    r"|gets?|works?\s+out\s+to|evaluates?\s+to|simplifies\s+to)(?:\s+equal\s+to)?|equals?|equal\s+to|has|have|had|takes?|took"
    r"|needs?|costs?|weighs?|reads?|says|est(?:\s+égale?s?)?(?:\s+(?:à|de))?|sont|vaut|valent|mesure|donne"
    r"|ist(?:\s+gleich)?|sind|lautet|lauten|beträgt|betragen|ergibt|misst)"
)
_STATEMENT = re.compile(
    rf"^(?P<subject>[^=<>≤≥≠?!;\n]{{1,120}}?)(?<![\w\\])(?P<verb>{_VERB})(?!\w)\s*:?\s*(?=\S)", re.IGNORECASE
)
_HEADED = re.compile(
    r"^(?P<subject>(?=(?-i:[A-Z])[a-z]{2}|[^:：]*(?:[a-z]{3}\s|[一-鿿]))[^=<>≤≥≠?!;:：\n\d\\]{2,80})[:：]\s*(?=\S)"
)
_CJK_STATEMENT = re.compile(
    r"^(?P<subject>[^=<>≤≥≠?!;:：,，。、\n？]{1,40}?)(?:就是|等于|应为|应是|约为|约等于|恰为|分别是|分别为|是|为|共有|有|は|が)"
    r"\s*[:：]?\s*(?=\S)"
)
_CLAUSE = re.compile(r"^(?:当|由|根据|因为|由于|在)[^?？。;；\n]{1,60}?[,，]\s*(?=\S)")
_SYMBOL_WORD = re.compile(r"[a-zà-ÿ]{3,}|[A-Z][a-z]{2,}|\b(?i:it|he|we|i|il|es|on)\b|[一-鿿ぁ-ん]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
# A figure's name has one value, whatever symbol it is written with.
_FIGURE = re.compile(r"^(?:m\s*)?(?:∠|△|⌒|\\(?:measured)?angle|\\triangle)\s*(?:[A-Z]{1,3}|\d)$")
_MATH_START = re.compile(r"[\d$+.\\√π∞(\[{|-]|[A-Za-z](?![A-Za-z])")
_COUNTED = re.compile(
    r"^(?P<subject>(?:[^\W\d_][\w'’-]*\s+){1,12}(?:[^\W\d_]+(?:ed|[^s\W\d]s)|paid|left|bought|sold|spent|won|lost|ate|ran"
    r"|made|got|kept|gave|went|met|saw|put|get|earn|walk|buy|make|use|pay|see)\s+(?:(?:about|exactly|only|just|approximately)\s+)?)"
    r"(?=[$¤£€]?\s?\d[\d.,/]*\$?(?:\s+[^\W\d_]+){0,12}$)",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\s*(?:,\s*)?(?:\b(?:is|are|must\s+be)\s+(?:therefore\s+|thus\s+)?(?:(?:the|our|my)\s+)?(?:(?:correct|right|final|required|desired)\s+)?"
    r"(?:answer|solution|result|option|choice|one|value)s?(?:\s+(?:to|of|for)\s+(?:the|this)\s+\w+)?"
    r"|\b(?:is|are)\s+(?:correct|right|true)|\best\s+(?:la\s+)?(?:bonne\s+|la\s+)?(?:réponse|correcte?|juste)"
    r"|\bist\s+(?:die\s+)?(?:richtig|korrekt|richtige\s+antwort|richtige\s+lösung|antwort|lösung)"
    r"|(?:是|为)(?:本题)?的?(?:正确)?的?(?:答案|选项)|(?:选项|项)?(?:是|为)?正确(?:的|答案|选项)?|(?:选项|项)|即为所求"
    r"|(?:が|は)(?:正解|答え)(?:です|である|だ|となる)?|です|である|となる|となります|になる|になります|だ)$",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"^(?P<kept>(?:[^=]{1,40}=\s*)?[$¤£€]?\s?[+-]?\\?[\d][^\s]*(?:\s+[^\W\d_]+[.^{}\d]*){0,3}?)\s+"
    r"(?:ago|long|tall|wide|high|deep|old|away|left|remaining|altogether|(?:in|on|at|to|for|of)\s+[^\W\d_]+(?:\s+[^\W\d_]+){0,10}"
    r"|\(\s*[a-z]{1,3}\s*(?:\^?\s*\{?[23]\}?)?\s*\))$",
    re.IGNORECASE,
)
_MORE = re.compile(
    r"^((?:[^=]{1,40}=\s*)?\d[\d.,/]*)\s+(?:more|extra|additional)\s+(?=[^\W\d_])(?!than)", re.IGNORECASE
)
_NUMBER_FIRST = re.compile(r"(?:[^=]{1,40}=\s*)?[$¤£€+-]?\s?\\?\d")
_WORDS = re.compile(r"[^\W\d_]{2,}|[=:,≈∴]|\w[选项]|[一-鿿]")
_BECAUSE = re.compile(
    r"(?:[,;]?\s+(?:because|since|parce\s+que|weil)|[,;]\s+(?:as|for|car|da|denn)|[,;，；]\s*因为)(?:\s|(?<=因为)).*$",
    re.DOTALL | re.IGNORECASE,
)
# Runs of blanks would make a search for what may follow a blank quadratic.
_SPACES = re.compile(r"\s+")
_MAX_STEPS = 8


def denies(text: str) -> bool:
    """Whether a text holds a word of denial, doubt or change, so that what it names is not asserted."""
    return bool(_DENIAL.search(_HARMLESS.sub(" ", text)))


def look_through(text: str) -> str:
    """Take off words that only introduce or close an answer ("So", "The area is", "is the answer").

    "x is 5" becomes "x = 5": what stands before the verb is a name, or an expression whose value is not the answer.
    """
    if not _WORDS.search(text):
        return text
    text = _SPACES.sub(" ", text)
    for _ in range(_MAX_STEPS):
        shorter = _shorter(text).strip()
        if shorter == text or not shorter.strip(" .,:;$"):
            break
        text = shorter
    return text


def _shorter(text: str) -> str:
    """One lead-in or closing less."""
    for pattern in (_OTHERS_OUT, _CONNECTIVE, _CHOICE_LABEL, _LABEL, _CLAUSE):
        found = pattern.match(text)
        if found and found.end() and (pattern is _OTHERS_OUT or not spoils(found.group())):
            return text[found.end() :]
    closing = _CLOSING.search(text)
    if closing and closing.start():
        return text[: closing.start()]
    for pattern in (_STATEMENT, _CJK_STATEMENT, _HEADED):
        found = pattern.match(text)
        if found and not spoils(found.group()):
            return _stated(found["subject"].strip(), text[found.end() :])
    counted = _COUNTED.match(text)
    if counted and not denies(text) and not spoils(counted.group()):
        return text[counted.end() :]
    if _MORE.match(text):
        return _MORE.sub(r"\1 ", text)
    tail = _TAIL.match(text) if _NUMBER_FIRST.match(text) else None
    return tail["kept"] if tail and not spoils(text) else text


def spoils(words: str) -> bool:
    """Whether words before or behind an answer do more than assert it."""
    if denies(words) or _ALTERNATIVE.search(_HARMLESS.sub(" ", words)):
        return True
    return bool(_CHANGED.search(_PLAIN_VALUE.sub(" ", words)))


def _stated(subject: str, rest: str) -> str:
    """What a statement says; of a symbol it says "symbol = value"."""
    is_symbol = not _FIGURE.match(subject.strip("$ ")) and not _SYMBOL_WORD.search(_COMMAND.sub(" ", subject))
    return f"{subject} = {rest}" if is_symbol and _MATH_START.match(rest) else rest


def head_denies(text: str) -> bool:
    """Whether the words before the last relation sign of an answer deny it ("never = 5")."""
    head = text[: max(map(text.rfind, "=<>"))] if any(sign in text for sign in "=<>") else ""
    return bool(head) and denies(head)


def without_reason(text: str) -> str:
    """The text without a "because ..." at its end."""
    return _BECAUSE.sub("", _SPACES.sub(" ", text))
