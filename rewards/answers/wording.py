"""What surrounds an answer in words: lead-ins, labels, closings and reasons that are taken off before it is read.

Words are taken off only if they assert. Any word of denial, doubt or change in them ("not", "perhaps", "twice")
leaves the text as it is, and `denies` keeps what is left from being read as a value. English, Chinese, Japanese,
French and German are read; texts come with full-width marks or with the plain ones of notation.clean.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.answers.denials import denies, either, spoils

# Patterns, parted by ";".
_LINKS = r"""(?:it|that)['’]s(?= ); so; thus; hence; therefore; then; now; finally; consequently; accordingly;
clearly; obviously; overall; indeed; also; in (?:conclusion|summary|total|the end|short); to conclude; as a result;
but; and; that is; which means; approximately; about; roughly; around; exactly; approx\.?; precisely; simply; just;
equal to; given by;
(?:we|i|you|one) (?:\w+ly )?(?:can )?(?:then )?(?:get|have|find|obtain|see|conclude|know|deduce|think|believe|say);
(?:this|which|it|that) (?:gives?|yields?|means?|implies|follows)(?: us)?; follows"""
_FRENCH_LINKS = """donc; ainsi; alors; par conséquent; d['’]où; finalement; enfin; environ; exactement; égale?s? à;
on (?:obtient|trouve|a); nous (?:obtenons|trouvons|avons)"""
_GERMAN_LINKS = """also; daher; somit; folglich; deshalb; damit; schließlich; ungefähr; etwa; genau; gleich;
wir erhalten; es gilt"""
_CHINESE_LINKS = """所以; 因此; 因而; 于是; 从而; 那么; 综上(?:所述)?; 由(?:此|以上|上|题意|题)?(?:可知|可得|得);
可知; 可得; 可见; 解得; 求得; 得到; 得出; 显然; 计算得; 经计算; 最终; 最后; 故; 则; 即; 得; 解; 知; 约为?; 大约;
恰好?; 共有?; 一共有?; 总共有?"""
_JAPANESE_LINKS = "したがって; 従って; よって; ゆえに; 故に; つまり; すなわち; 以上より; これより; だから; 約"
_CONNECTIVE = re.compile(
    rf"^(?:(?:{either(_LINKS, _FRENCH_LINKS, _GERMAN_LINKS)})(?![\w(])(?:\s+(?:that|que|dass|:))?"
    r"|(?:is|are|was|equals?)(?=\s+[\d$\\(+-])|\\(?:therefore|approx|implies|Rightarrow|because)(?![A-Za-z])|=>|->|[=:,∴≈⇒⟹→]"
    rf"|(?:{either(_CHINESE_LINKS, _JAPANESE_LINKS)})(?![不非没未无可]))\s*[,:，：、]*\s*",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^(?:(?:ist|lautet)\s+(?=d))?(?:(?:the|my|our|your|la|le|l['’]|notre|die|das|unsere)\s*)?"
    r"(?:(?:correct|right|final|best|required|desired|numerical|bonne|richtige|korrekte|endgültige)\s+)*"
    r"(?:ans(?:wer)?|result|solution|réponse|résultat|antwort|lösung|ergebnis)s?"
    r"(?:\s+(?:finale|correcte|exacte))?(?:\s+(?:to|of|for)\s+(?:the|this)\s+(?:question|problem|exercise))?"
    r"(?:\s+(?:is|are|was|will\s+be|would\s+be|should\s+be|must\s+be|est|sont|ist|sind|lautet))?"
    r"(?![\w('’])\s*[:：=,]*\s*"
    r"|^(?:应|故)?填(?:写|上|入)?\s*[:：]?\s*"
    r"|^[【\[]?(?:本题|该题|此题)?(?:的)?(?:正确|最终|最后|标准)?的?(?:答案|结果|答え|解答|正解|答|解)"
    r"[】\]]?(?:是|为|就是|应为|应是|应该是|は)?(?![不非没未无の])\s*[:：,，]*\s*",
    re.IGNORECASE,
)
_LETTER_LABELS = r"""(?:(?:i|we)(?:['’](?:ll|d)| would)? )?(?:choose|pick|select|go with)\s+; (?:la|die)\s+;
(?:the |la |die |l['’])?(?:(?:correct|right|final|best|bonne|richtige) )?(?:option|choice|letter)s?\s*:?\s+;
(?:la |die )?(?:bonne |richtige )?(?:lettre|buchstabe|réponse)\s*:?\s+;
(?:richtig|correct|right|juste) (?:is|ist|est)\s+;
(?:本题|此题|该题)?(?:故|应|应该|只能)?(?:选择|选)项?(?:是|为)?\s*[:：]?\s*;
(?:正确)?的?(?:选项|選択肢)(?:是|为|は)?\s*[:：]?\s*"""
_CHOICE_LABEL = re.compile(
    rf"^(?:{either(_LETTER_LABELS)})(?=[(\[（]?\s*(?:\$|\\text)?[A-Za-z](?:[^\w]|(?-i:[A-Z])|$|[一-鿿]))", re.IGNORECASE
)
_OTHERS_OUT = re.compile(
    r"^(?:(?:it|the\s+answer)\s*(?:is|'s)\s+)?(?:neither|not)\s+\(?[A-H]\)?"
    r"(?:\s*(?:,|\bor\b|\bnor\b|\band\b)\s*\(?[A-H]\)?){0,6}\s*,\s*(?=but\b|it\b|the\b|so\b|rather\b)(?:but\s+|rather\s+)?",
    re.IGNORECASE,
)
_SIZES = "length|area|measure|value|perimeter|radius|volume|height|width|slope|size|diameter|circumference"
_BE = r"""is; are; was; were; be; ha(?:s|ve) to be; becomes?; comes? (?:out )?to; amounts? to; totals; measures?;
gives?(?: us)?; yields?; leaves?; gets?; makes?; works? out to; evaluates? to; simplifies to"""
_VERBS = rf"""(?:{either(_BE)})(?: equal to)?; equals?; equal to; takes?; took; needs?; costs?; weighs?; reads?; says;
ha(?:s|ve)(?: (?:an?|the))?(?: total)? (?:{_SIZES})(?: of)?; has; have; had;
est(?: égale?s?)?(?: (?:à|de))?; sont; vaut; valent; mesure; donne;
ist(?: gleich)?; sind; lautet; lauten; beträgt; betragen; ergibt; misst"""
_STATEMENT = re.compile(
    rf"^(?P<subject>[^=<>≤≥≠?!;\n]{{1,120}}?)(?<![\w\\])(?:{either(_VERBS)})(?!\w)\s*:?\s*(?=\S)", re.IGNORECASE
)
_HEADED = re.compile(
    r"^(?P<subject>(?=(?-i:[A-Z])[a-z]{2}|[^:：]*(?:[a-z]{3}\s|[一-鿿]))[^=<>≤≥≠?!;:：\n\d\\]{2,80})[:：]\s*(?=\S)"
)
_CJK_STATEMENT = re.compile(
    r"^(?P<subject>[^=<>≤≥≠?!;:：,，。、\n？]{1,40}?)(?:就是|等于|应为|应是|约为|约等于|恰为|分别是|分别为|是|为|共有|有|は|が)"
    r"\s*[:：]?\s*(?=\S)"
)
# The conclusion of a sentence that gives its reason first; it states something by itself.
_CONCLUSION = re.compile(
    r"^[^?？\n]{1,300}[,，;；]\s*(?=(?:so|thus|hence|therefore)\s+[^\W\d]|所以|因此|故|因而|于是|从而)", re.IGNORECASE
)
_CONDITION = re.compile(r"\b(?:if|unless|suppose|assume|whether|wenn|falls)\b|如果|假如|假设|若", re.IGNORECASE)
# What comes before a comma and gives a reason.
_REASON_FIRST = re.compile(r"^(?:since|because|as)\s[^,;?]{1,120},\s*(?=\S)", re.IGNORECASE)
_SYMBOL_WORD = re.compile(r"[a-zà-ÿ]{3,}|[A-Z][a-z]{2,}|\b(?i:it|he|we|i|il|es|on)\b|[一-鿿ぁ-ん]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
# "A, and the answer is B" gives two answers.
_ANSWER_BEFORE = re.compile(
    r"^\W*(?:[A-Z]|[+-]?\d[\d.]*)\s*(?:[)\]]\s*)?(?:[.,，、;&/](?!\s*which\b)|and\b|和)", re.IGNORECASE
)
# A figure's name has one value, whatever symbol it is written with.
_FIGURE = re.compile(r"^(?:m\s*)?(?:∠|△|⌒|\\(?:measured)?angle|\\triangle)\s*(?:[A-Z]{1,3}|\d)$")
_MATH_START = re.compile(r"[\d$+.\\√π∞(\[{|-]|[A-Za-z](?![A-Za-z])")
_DOING = """arrived; scored?s?; walk(?:s|ed); travel(?:s|led|ed); started; earn(?:s|ed)?; bought; buys?; sold;
sells?; paid; pays?; spent; spends?; won; wins?; lost; ate; eats?; ran; runs?; made; makes?; got; gets?; kept;
keeps?; gave; gives?; drove; drives?; used?s?; saved?s?; collected; received?s?; owe[sd]; left; finished;
work(?:s|ed); saw; counted; found; needs?; took; takes?; contains?; holds?; shows; costs?; read; visited; planted;
baked; jumped; played; drew; cuts?"""
_COUNTED = re.compile(
    r"^(?:[^\W\d_][\w'’-]*\s+){1,12}(?:" + either(_DOING) + r")\s+(?:(?:about|exactly|only|just|approximately)\s+)?"
    r"(?=[$¤£€]?\s?\d[\d.,/]*\$?(?:\s+[^\W\d_]+){1,12}$)",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"\s*(?:,\s*)?(?:\b(?:is|are|must\s+be)\s+(?:therefore\s+|thus\s+)?(?:(?:the|our|my)\s+(?:only\s+)?)?"
    r"(?:(?:correct|right|final|required|desired)\s+)?(?:answer|solution|result|option|choice|one|value)s?(?:\s+(?:to|of|for)\s+(?:the|this)\s+\w+)?"
    r"|\b(?:is|are)\s+(?:correct|right|true)|\best\s+(?:la\s+)?(?:bonne\s+|la\s+)?(?:réponse|correcte?|juste)"
    r"|\bist\s+(?:die\s+)?(?:richtig|korrekt|richtige\s+antwort|richtige\s+lösung|antwort|lösung)"
    r"|(?:是|为)(?:本题)?的?(?:正确)?的?(?:答案|选项)|(?:选项|项)?(?:是|为)?正确(?:的|答案|选项)?|(?:选项|项)|即为所求"
    r"|(?:が|は)(?:正解|答え)(?:です|である|だ|となる)?|です|である|となる|となります|になる|になります|だ)$",
    re.IGNORECASE,
)
# A quick look at the end of a text before the expression above is tried all through it.
_CLOSERS = """answer answers solution solutions result results option options choice choices one ones value values
correct correcte right true réponse juste richtig korrekt antwort lösung 项 案 确 的 求 解 え す る だ"""
_CLOSER_ENDS = tuple(_CLOSERS.split())
_TAIL = re.compile(
    r"^(?P<kept>(?:[^=]{1,40}=\s*)?[$¤£€]?\s?[+-]?\\?[\d][^\s]*(?:\s+[^\W\d_]+[.^{}\d]*){0,3}?)\s+"
    r"(?:ago|long|tall|wide|high|deep|old|away|left|remaining|altogether"
    r"|(?:in|on|at|to|for|(?<=[a-z] )of)\s+[^\W\d_]{2,}(?:\s+[^\W\d_]+){0,10})$",
    re.IGNORECASE,
)
_MORE = re.compile(
    r"^((?:[^=]{1,40}=\s*)?\d[\d.,/]*)\s+(?:more|extra|additional)\s+(?=[^\W\d_])(?!than)", re.IGNORECASE
)
_NUMBER_FIRST = re.compile(r"(?:[^=]{1,40}=\s*)?[$¤£€+-]?\s?\\?\d")
# A command is a word only where it is one of those that lead in.
_WORDS = re.compile(
    r"\\(?:therefore|approx|implies|Rightarrow|because)|(?<![\\A-Za-z])[^\W\d_]{2,}|[=:,≈∴→]|->|\w[选项]|[一-鿿]"
)
_BECAUSE = re.compile(
    r"(?:[,;]?\s+(?:because|since|parce\s+que|weil)|[,;]\s+(?:as|car|da|denn)|[,;，；]\s*因为)(?:\s|(?<=因为)).*$",
    re.DOTALL | re.IGNORECASE,
)
# Remarks at the end that say nothing about the value, and where a largest or smallest value is taken.
_REMARK = re.compile(
    r"[,，]\s*(?:as\s+(?:required|claimed|desired|expected|needed|wanted|asked|shown|stated)\b[^\d,]{0,40}"
    r"|which\s+is\s+what\s+(?:we|the|was)\b[^\d,]{0,40}|(?:and|so)\s+we\s+are\s+done|qed|ce\s+qui\s+conclut|即为所求|(?:and\s+)?not\s+-?\d[\d.]*|而不是\s*-?\d[\d.]*)\W{0,4}$"
    r"|\s+and\s+(?:that|this)\s+is\s+(?:our|the|my)\s+(?:final\s+)?answer\W{0,4}$|\s+as\s+(?:the|our|my)\s+(?:final\s+)?answer\W{0,4}$",
    re.IGNORECASE,
)
_REMARKS = (" not ", "不是", " as ", "which", " we are done", "qed", "ce qui", "所求", " answer")
_EXTREMUM = re.compile(r"m(?:ax|in)im|最[大小高低]")
_PLACE = re.compile(
    r"(?:,?\s+(?:at|when|for)\s+[a-z]\s*=\s*\S+|[,，]\s*(?:此时|当)\s*[a-z]\s*=\s*[^\s,，]+?\s*(?:时(?:取[到得])?)?)[.。]?$",
    re.IGNORECASE,
)
_REASONS = ("因为", "because", "since", "parce", "weil", " as ", " car ", " da ", " denn ")
_LEAD_INS = (_CONCLUSION, _OTHERS_OUT, _REASON_FIRST, _CONNECTIVE, _CHOICE_LABEL, _LABEL)
# These may deny, as they speak of something else.
_ABOUT_OTHERS = (_CONCLUSION, _OTHERS_OUT, _REASON_FIRST)
_STATEMENTS = (_STATEMENT, _CJK_STATEMENT, _HEADED)
_MAX_STEPS = 8


@lru_cache(maxsize=1024)
def look_through(text: str) -> str:
    """Take off words that only introduce or close an answer ("So", "The area is", "is the answer").

    "x is 5" becomes "x = 5": what stands before the verb is a name, or an expression whose value is not the answer.
    """
    if not _WORDS.search(text):
        return text
    # Runs of blanks would make a search for what may follow a blank quadratic.
    text = " ".join(text.split())
    for _ in range(_MAX_STEPS):
        shorter = _shorter(text).strip()
        if shorter == text or not shorter.strip(" .,:;$"):
            break
        text = shorter
    return text


def _shorter(text: str) -> str:
    """One lead-in or closing less."""
    for pattern in _LEAD_INS:
        found = pattern.match(text)
        if not found or not found.end():
            continue
        is_open = _CONDITION.search(found.group()) if pattern in _ABOUT_OTHERS else spoils(found.group())
        if not is_open:
            return text[found.end() :]
    end = text[-60:].lower()
    may_close = end.endswith(_CLOSER_ENDS) or " the " in end or " this " in end
    closing = _CLOSING.search(text) if may_close else None
    if closing and closing.start():
        return text[: closing.start()]
    for pattern in (_STATEMENT, _HEADED) if text.isascii() else _STATEMENTS:
        found = pattern.match(text)
        if found and not spoils(found.group()) and not _ANSWER_BEFORE.match(text):
            return _stated(found["subject"].strip(), text[found.end() :])
    counted = _COUNTED.match(text)
    if counted and not denies(text) and not spoils(counted.group()):
        return text[counted.end() :]
    if _MORE.match(text):
        return _MORE.sub(r"\1 ", text)
    tail = _TAIL.match(text) if _NUMBER_FIRST.match(text) else None
    return tail["kept"] if tail and not spoils(text) else text


def _stated(subject: str, rest: str) -> str:
    """What a statement says; of a symbol it says "symbol = value"."""
    is_symbol = not _FIGURE.match(subject.strip("$ ")) and not _SYMBOL_WORD.search(_COMMAND.sub(" ", subject))
    return f"{subject} = {rest}" if is_symbol and _MATH_START.match(rest) else rest


def without_reason(text: str) -> str:
    """The text without a "because ..." at its end."""
    text = " ".join(text.split())
    if " " not in text and "，" not in text and "," not in text:
        return text
    low = text.lower()
    if any(word in low for word in _REASONS):
        text = _BECAUSE.sub("", text)
    if _EXTREMUM.search(low):
        text = _PLACE.sub("", text)
    return _REMARK.sub("", text) if any(word in low for word in _REMARKS) else text
