"""How OlympiadBench asks: the authors' wording in English and Chinese, by subject, kind of answer and unit."""

from __future__ import annotations

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.shared import pictured

_ENGLISH = {"Numerical": "a numerical value", "Expression": "an expression", "Equation": "an equation",
            "Interval": "an interval"}  # fmt: skip
_CHINESE = {"Numerical": "数值", "Expression": "表达式", "Equation": "方程", "Interval": "区间"}


def is_chinese(row: Row) -> bool:
    """Whether a row is of a Chinese part, by its file's name or its column."""
    return "_zh_" in row.split or str(row.metadata.get("language", "")).lower().startswith("chin")


def prompt(row: Row) -> str:
    """The authors' wording in the problem's language, then the problem."""
    return pictured(row, f"{(_in_chinese if is_chinese(row) else _in_english)(row)}\n{row.problem}")


def _in_english(row: Row) -> str:
    subject = "Physics" if _is_physics(row) else "Math"
    box = "\\boxed{multiple answers connected with commas}" if _has_several(row) else "\\boxed{answer}"
    unit = ", note that the unit of the answer should not be included in \\boxed{}" if row.unit else ""
    kinds = _kinds(row, _ENGLISH)
    kind = f"The answer of The problem should be {kinds[0]}. " if kinds else ""
    if kinds and _has_several(row):
        kind = f"The problem has multiple answers, each of them should be {kinds[0]}. "
        if len(set(kinds)) > 1:
            kind = f"The problem has multiple answers, with the answers in order being {', '.join(kinds)}. "
    return (
        f"The following is an open-ended problem from an International {subject} competition. {kind}Please calculate "
        "the answer according to the given requirements and the information provided. Please use LaTeX format to "
        "represent the variables and formulas used in the solution process and results. Please end your solution with "
        f'"So the final answer is {box}{"(unit)" if row.unit else ""}." and give the result explicitly{unit}.'
    )


def _in_chinese(row: Row) -> str:
    subject = "物理" if _is_physics(row) else "数学"
    box = "\\boxed{用英文逗号连接的多个答案}" if _has_several(row) else "\\boxed{答案}"
    unit = "，注意答案的单位不要放在\\boxed{}中" if row.unit else ""
    kinds = _kinds(row, _CHINESE)
    kind = f"，答案类型为{kinds[0]}" if kinds else ""
    if kinds and _has_several(row):
        alike = len(set(kinds)) == 1
        kind = f"，题目有多个答案，答案类型{'均' if alike else '分别'}为{kinds[0] if alike else '、'.join(kinds)}"
    return (
        f"以下是中国{subject}竞赛中的解答题{kind}。请根据题目的要求和所提供的信息计算得出答案。"
        "解答过程和结果中使用的变量和公式请使用LaTeX格式表示。"
        f"请在最后以“所以最终答案是{box}{'(单位)' if row.unit else ''}。”显式给出结果{unit}。"
    )


def _is_physics(row: Row) -> bool:
    return "physics" in f"{row.split} {row.metadata.get('subject', '')}".lower()


def _has_several(row: Row) -> bool:
    return bool(row.metadata.get("is_multiple_answer"))


def _kinds(row: Row, names: dict[str, str]) -> list[str]:
    """The kinds of the answers; none for tuples, whose kind the authors do not name."""
    answer_type = str(row.metadata.get("answer_type", ""))
    if "Tuple" in answer_type or "Need_human_evaluate" in answer_type:
        return []
    kinds = [next((text for name, text in names.items() if name in part), "") for part in answer_type.split(",")]
    return kinds if all(kinds) else []
