"""Counted nouns: "18 eggs", "5个苹果" are the numbers 18 and 5; a word that changes the number is never taken off."""

from __future__ import annotations

import re

from rewards.answers.denials import denies
from rewards.answers.foreign_nouns import changes_value, is_unknown_noun
from rewards.answers.grammar import GREEK, KNOWN_WORDS

# Numbers, fractions, signs, comparisons, denials, doubts, directions: with one of them the number is another or none.
_ENGLISH = """half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths
eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths millionth
millionths one two three four five six seven eight nine ten eleven twelve tens hundred hundreds thousand
thousands million millions billion billions trillion trillions dozen dozens score gross pair pairs
couple couples double doubles triple triples twice thrice percent percents basis percentage percentages
pct per mille cent squared cubed factorial inverse minus plus less more fewer over under above below
beyond negative positive except without excluding including remainder remaining left right mod base
north south east west up down back short too many much few several not no never none nothing wrong false
incorrect isn't cannot impossible maybe perhaps about around approximately nearly almost roughly least
most or and nor to from between than versus out into as if is are was were be equals equal by larger
smaller bigger greater lower higher older younger longer shorter faster slower heavier lighter ago later
undefined infinite unknown unsure unclear guess assume suppose but however although though therefore
wait actually sorry oops otherwise because since then when where which while else before after neither
either whatever"""
_GERMAN = """dutzend hundert tausend millionen milliarde milliarden billionen halb halbe hälfte drittel viertel
fünftel zehntel paar paare prozent kein keine nicht ohne mehr weniger mal falsch oder und bis etwa circa
doppelt nord süd ost links rechts hoch"""
_FRENCH = """douzaine douzaines centaine centaines millier milliers milliard milliards moitié moitiés demi demie
demis demies tiers quart quarts paire paires cents pourcent pas non jamais sans moins faux ou et environ
gauche droite sud est ouest"""
_CHANGING = frozenset(f"{_ENGLISH} {_GERMAN} {_FRENCH}".split())
# Words that end like a plural and are none.
_NO_PLURALS = """always sometimes besides towards upwards downwards forwards backwards afterwards across unless whereas
thus yes does has its this ours yours hers theirs fails lacks misses les des ses mes nos vos ces dans sous vers très
après toujours alors"""
_NO_NOUNS = frozenset(_NO_PLURALS.split()) | KNOWN_WORDS | GREEK
_PLURALS = "people children men women mice geese teeth feet sheep fish deer dice data oxen vertices heures élèves fois"
_IRREGULAR = frozenset(_PLURALS.split())
_ORDINAL = re.compile(r"(?:teen|tie|elf|even)ths?$")
_GERMAN_PLURAL = re.compile(r"(?:[ens]|er)$|[äöü]")
# A word that ends in -s without being a plural.
_SINGULAR_S = re.compile(r"(?:ss|us|is|'s)$")
_WORDS = re.compile(r"^(?P<value>.*[\d)}])\s*(?P<words>[^\W\d_][^\W\d_ '-]*(?:[ '-]+[^\W\d_]+){0,7})$", re.DOTALL)
_TOTAL = re.compile(r"\s+(?:in (?:total|all)|altogether|total|insgesamt|au total)$", re.IGNORECASE)
_EACH = re.compile(
    r"(?:^|\s+)(?:each|apiece|(?:per|for (?:each|every)|each|every) (?P<base>[^\W\d_]+))$", re.IGNORECASE
)
_COUNTERS = """个 個 人 只 隻 条 條 张 張 本 名 位 件 支 枝 颗 粒 头 頭 匹 辆 台 座 棵 朵 把 根 杯 瓶 盒 箱 袋 包 次 种
種 份 间 层 道 题 页 排 列 行 班 步 面 边 家 项 圈 场 句 岁 歳 套 幅 枚 盏 架 艘 节 篇 段 串 筐 桶 碗
盘 片 束 所 门 倍 队 户 组 組 周岁 股 株 块 滴 根 顶 期 级 部 冊 册 回 つ 番 通り 羽 皿 箇所 か所 ページ 点"""
_HAN = "\u3040-\u30ff\u3400-\u9fff々ー"
_COUNTED = re.compile(
    rf"^(?P<value>.*[\d)}}万亿億萬千百])\s*\(?(?:{'|'.join(_COUNTERS.split())})(?P<noun>[{_HAN}]{{0,8}})\)?$", re.DOTALL
)
# 个半 is a half more, 个多 is some more, 以上 and 以下 are bounds; 多边形 is a polygon.
_HAN_CHANGING = re.compile(
    "^(?:多(?!边|面|项)|余|餘|零|又|加|减|减去|和|与|及|至|到|乘|除|点|以|足|强|弱)|半|万|萬|亿|億|左右|上下|或|不(?!同)|没|非|错|以上|以下"
    "|以内|ほど|くらい|ぐらい|ない|約|约|未満|未满|超"
)


def changes_number(words: str) -> bool:
    """Whether words behind a number make it another one (dozen, half, 万), or none."""
    latin = re.findall(r"[^\W\d_]+", words.casefold())
    return bool(_HAN_CHANGING.search(words)) or any(word in _CHANGING or _ORDINAL.search(word) for word in latin)


def split_noun(text: str) -> tuple[str, str] | None:
    """(value text, head of the noun) of a cleaned count, or None if what follows the number is no plain noun.

    The head is the noun's singular in small letters; "" for an Asian counter, which any noun agrees with.
    """
    if not text.isascii() and (counted := _COUNTED.match(text)):
        return None if _HAN_CHANGING.search(counted["noun"]) else (counted["value"], "")
    found = _WORDS.match(text)
    if not found:
        return None
    words = _TOTAL.sub("", found["words"])
    each = _EACH.search(words)
    if each:
        if each["base"] and each["base"].casefold() in _CHANGING:
            return None
        words = words[: each.start()]
        if not words:
            return found["value"], ""
    # A counting word belongs to the number: 5 million apples.
    return _without_noun(found["value"], words.split(), text[len(found["value"])] == " " or not words.isascii())


def _without_noun(value: str, words: list[str], spaced: bool) -> tuple[str, str] | None:
    counting = 0
    while counting < len(words) - 1 and words[counting] in ("hundred", "thousand", "million", "billion", "dozen"):
        counting += 1
    value, words = " ".join([value, *words[:counting]]), words[counting:]
    folded = [word.casefold() for word in words]
    if any(part in _CHANGING or _ORDINAL.search(part) for word in folded for part in (word, *word.split("-"))):
        return None
    if len(folded) == 1 and changes_value(folded[0]):
        return None
    # Of "pieces of candy" the pieces are counted.
    head = words[folded.index("of") - 1] if "of" in folded[1:] else words[-1]
    single = value.strip() in ("1", "-1", "0")
    is_apart = spaced and is_unknown_noun(words) and _NO_NOUNS.isdisjoint(folded) and not denies(" ".join(words))
    return (value, _stem(head)) if single or _is_plural(head) or is_apart else None


def _is_plural(word: str) -> bool:
    """A plural of English or French, or a German noun (capital first letter)."""
    if len(word) < 3 or (word.isupper() and len(word) < 5):
        return False
    low = word.casefold()
    if not _NO_NOUNS.isdisjoint((low, low.removesuffix("s"))) or low.startswith("prozent"):
        return False
    german = word[0].isupper() and word[1:].islower() and bool(_GERMAN_PLURAL.search(low))
    return low in _IRREGULAR or german or (low.endswith(("s", "ux")) and not _SINGULAR_S.search(low))


def _stem(word: str) -> str:
    low = word.casefold()
    return re.sub(r"(?:ies|es|s|y|x|e)$", "", low) if len(low) > 3 else low


def agree(first: str | None, second: str | None) -> bool:
    """Whether two heads may count the same; a missing one, and that of an Asian counter, agree with all."""
    return not first or not second or first == second
