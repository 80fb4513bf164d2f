"""Words behind a number that change it, in languages whose nouns we do not know; English words that are no nouns."""

from __future__ import annotations

import re

# Spanish, Portuguese, Italian, Indonesian, Vietnamese, Russian, Polish, Turkish, then English.
_WORDS = """mil millar docena docenas ciento cientos centenar mitad medio media medios tercio tercios cuarto cuartos
quinto quintos sexto sextos octavo octavos décimo décimos menos mas más nunca veces doble triple casi derecha izquierda
norte oeste falso incorrecto negativo negativa positivo mal entre sobre
milhar milhares dúzia dúzias metade meio meia meios terço terços sétimos vezes dobro triplo não nem mais cerca quase
direita esquerda cento centos
mila mille migliaia centinaia cento dozzina dozzine metà mezzo mezza mezzi terzo terzi quarto quarti quinto quinti sesto
sesti decimo decimi meno più circa quasi volte volta doppio doppi non sbagliato destra sinistra
ribu juta ratus puluh miliar triliun persen setengah perempat pertiga sepertiga kali lusin kurang lebih bukan tidak atau
lagi sekitar pangkat kuadrat salah negatif kanan kiri barat timur utara selatan
nghìn ngàn triệu tỷ tỉ trăm chục tá nửa phần không hoặc khoảng hơn ít lần rưỡi âm sai chưa gần bình lập trái phải
сто сотня сотни сотен дюжина дюжины дюжин треть трети четверть четверти половина половины раз раза нет не или и минус
плюс примерно около больше меньше почти неверно влево вправо север юг запад восток десятков квадрате кубе
tysiąc tysiące tysięcy milion miliony milionów połowa nie razy lub około prawie
bin yüz milyon milyar yarım değil kere kez veya yüzde
achtel neuntel hundertstel
clockwise counterclockwise anticlockwise repeating recurring binary octal hexadecimal root roots radical radicals prime
power exponent modulus modulo kilo mega giga tera milli micro nano lakh lakhs crore crores myriad another other others
again further extra away yet still ever true given such that this they then with could would should might must will have
make gives ratio multiple factor infinity complex imaginary inclusive exclusive percentile even only also here there
what your mine more stop done same this none square cube cubic
january february march april may june july august september october november december
monday tuesday wednesday thursday friday saturday sunday"""
_CHANGING = frozenset(_WORDS.split())
_CHANGING_START = re.compile(
    r"mill?[ioóõ]|percent|percen|porcent|procent|prozent|процент|тысяч|милли|approx|aprox|aproks|negat|incorr|falsch"
    r"|sin|cos|tan|cot|sec|csc|arc|log|sqrt|exp|max|min(?!ut)|scheid|non|dis|un(?!i)|fals|wrong|err"
)
_SCALE = re.compile(r"mill?i?[oóõ]n|mil[ai]|percent|porcent|procent|процент|тысяч|милли")
_MODIFIER = re.compile(r"(?:ly|er|est|ing|ed|ish|ward|wise|fold|tel|mente|illion)$")
_LETTERS = r"[a-zß-ÿā-ɏḁ-ỿа-яёα-ωά-ώ]"
_FOREIGN = re.compile(rf"{_LETTERS}+(?: {_LETTERS}+)?")
_ASCII = re.compile(r"[a-z]{4,}")
_KOREAN = frozenset(["개", "명", "원", "마리", "권", "살", "세", "가지", "장", "대", "그루", "자루"])


def changes_value(word: str) -> bool:
    """Whether a word behind a number makes it another number, or none, in one of these languages."""
    return word in _CHANGING or bool(_SCALE.match(word))


def is_unknown_noun(words: list[str]) -> bool:
    """Whether the words behind a number are a noun that no list of ours holds: one word, or two in foreign letters."""
    text = " ".join(words)
    if text in _KOREAN:
        return True
    if any(changes_value(word) or _CHANGING_START.match(word) for word in words) or not _FOREIGN.fullmatch(text):
        return False
    if text.isascii():
        return bool(_ASCII.fullmatch(text)) and not _MODIFIER.search(text)
    return True
