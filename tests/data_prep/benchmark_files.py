"""Small hand-made files of the benchmark layouts, as their authors write them, and the same rows as hub tables."""

import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

LAYOUTS = ("mathvista", "mathverse", "mathvision", "dynamath", "puzzlevqa", "we_math", "tabmwp", "logicvista",
           "olympiadbench", "mmk12", "charxiv", "hallusionbench", "mm_math", "m3cot", "chartqa")  # fmt: skip


def drawn(colour: str, format: str = "PNG") -> bytes:
    picture = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(picture).ellipse((5, 5, 30, 25), fill=colour)
    stream = io.BytesIO()
    picture.save(stream, format)
    return stream.getvalue()


RED, BLUE = drawn("red"), drawn("blue", "JPEG")


def put(path: Path, content: object) -> Path:
    """A file with these bytes, this JSON, or (a tuple) these JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, tuple):
        path.write_text("".join(json.dumps(record) + "\n" for record in content))
    else:
        path.write_text(json.dumps(content, indent=4))
    return path


# The layouts, as their authors write them

MATHVISTA = {
    "question": "Find $x$.", "image": "images/5.jpg", "choices": ["97", "102"], "unit": None, "precision": None,
    "answer": "97", "question_type": "multi_choice", "answer_type": "text", "pid": "5",
    "metadata": {"split": "testmini", "language": "english", "img_width": 40, "source": "Geometry3K",
                 "category": "math-targeted-vqa", "task": "geometry problem solving", "context": "geometry diagram",
                 "grade": "high school", "skills": ["geometry reasoning", "algebraic reasoning"]},
}  # fmt: skip
MATHVERSE = {
    "sample_index": "3421", "problem_index": "685", "problem_version": "Text Dominant",
    "question": "A can is 13 cm high. Find L.\nChoices:\nA:14 cm\nB:15 cm", "image": "images_version_1-4/image_685.png",
    "answer": "B", "question_type": "multi-choice", "query_wo": "Please directly answer ...", "query_cot": "Please ...",
    "metadata": {"split": "testmini", "source": "Geo3D_collected", "subject": "Solid Geometry", "subfield": "Length"},
}  # fmt: skip
MATHVISION = {
    "id": "19", "question": "Eve has bananas. How many? <image1> and <image2>", "options": ["$2+4+3$", "$2 \\cdot 4$"],
    "answer": "B", "solution": None, "level": 2, "subject": "arithmetic", "image": "images/19.jpg",
}  # fmt: skip
DYNAMATH = {
    "question": "What is the period?", "answer": "2.0944", "image": "image/image1.png", "answer_type": "float",
    "subject": "analytic geometry", "level": "high school",
}  # fmt: skip
PUZZLE = {
    "image": "images/venn/venn_0012.png", "question": "What is the missing number?", "answer": 7,
    "options": ["1", "7", "4", "0"], "caption": "3 circles.", "explanation": "They add.", "deduction": "So 7.",
}  # fmt: skip
ALGO_PUZZLE = {
    "image": "images/clock/clock_0039.jpg", "question": "What time?", "options": ["9:17", "4:09"], "answer": "4:09",
    "solution": {"current_hour": 1, "add_hour": 3},
}  # fmt: skip
WE_MATH = {
    "ID": "2steps_8", "split": "testmini", "knowledge concept": "Circumference of Circles",
    "question": "Its circumference is ( )", "option": "A. 31.4;B. 3.14; C. x; y; D. No correct answer", "answer": "A",
    "image_path": "2steps/image/8-1.png", "key": "2steps_1", "question number": 8,
    "knowledge concept description": "C = 2 pi r",
}  # fmt: skip
TABMWP = {
    "question": "How much does Al need?", "choices": None, "answer": "39.96", "unit": "$", "table_title": "Prices",
    "table": "cup | $3.33", "table_for_pd": {"thing": ["cup"]}, "row_num": 1, "column_num": 2, "solution": "12 cups",
    "ques_type": "free_text", "ans_type": "decimal_number", "grade": 4, "split": "test",
}  # fmt: skip
LOGICVISTA = {
    "imagename": "v1_1.png", "question": "Which choices belong to the green category?", "answer": "A, C",
    "reasoning": "They have an X.", "skill": ["inductive"], "broad_capability": ["diagram"],
    "specific_capability": ["diagram", "ocr"], "imagesource": "tests", "sourcelink": "", "liscenced": "no",
}  # fmt: skip
MMK12 = {"id": "4d61-b", "question": "then $f(x)=$ .", "answer": "$2\\sin (2x)$", "image_path": "images/4d61-b.png"}
OLYMPIAD = {
    "id": 2231, "subfield": "Geometry", "context": None, "question": "A snail:\n<img_3362>\n\nDetermine $C$.",
    "solution": ["It is half."], "final_answer": ["$\\frac{1}{2}$"], "is_multiple_answer": False, "unit": None,
    "answer_type": "Numerical", "error": None,
}  # fmt: skip

CHARXIV = {
    "figure_id": 7, "query": "Which curve ends highest?", "answer": "Joint-CNN", "inst_category": 1, "qa_source": 3,
}  # fmt: skip
HALLUSION = {
    "category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": "0",
    "sample_note": "circle", "question_id": "1", "question": "Is the left circle larger?",
    "gt_answer_details": "Both are equal.", "gt_answer": "0", "filename": "./hallusion_bench/VD/illusion/0_0.png",
}  # fmt: skip
MM_MATH = {
    "question": "Find the length of $AB$.", "file_name": "51.png", "solution": "So it is $\\boxed{3\\sqrt{2}}$.",
    "year": "八年级上学期", "difficult": "普通", "knowledge": "Properties of Shapes",
}  # fmt: skip
M3COT = {
    "id": "geometry-5", "category": "area", "image_id": "5", "question": "What is its area?", "context": "A square.",
    "choices": ["4", "9"], "answer": "B", "rationale": "The side is 3.", "split": "test", "image_path": "images/5.png",
    "domain": "mathematics", "topic": "geometry",
}  # fmt: skip
CHARTQA = {"imgname": "17.png", "query": "What is the largest bar?", "label": "14"}
MMMU = {
    "id": "validation_Art_Theory_7", "question": "Who painted <image 1>?", "options": "['Anna', \"O'Hara\"]",
    "explanation": "", "image_1": {"bytes": RED, "path": None}, "image_2": None, "img_type": "['Paintings']",
    "answer": "B", "topic_difficulty": "Easy", "question_type": "multiple-choice", "subfield": "Painting",
}  # fmt: skip
MMMU_PRO = {
    "id": "test_Math_3", "question": "What is the area of <image 1>?", "options": "['1', '2', '3', '4', '5']",
    "explanation": "?", "image_1": {"bytes": RED, "path": None}, "image_2": None, "img_type": "['Diagrams']",
    "answer": "E", "topic_difficulty": "Hard", "subject": "Math",
}  # fmt: skip
MMMU_PRO_VISION = {
    "id": "test_Math_3", "image": {"bytes": RED, "path": None}, "options": "['1', '2', '3', '4', '5']", "answer": "E",
    "subject": "Math",
}  # fmt: skip


def build(name: str, root: Path, **change) -> Path:
    """One layout's folder below `root`; `change` replaces columns of its first record."""
    root = root / name
    first = {"mathvista": MATHVISTA, "mathverse": MATHVERSE, "mathvision": MATHVISION, "dynamath": DYNAMATH,
             "puzzlevqa": PUZZLE, "we_math": WE_MATH, "tabmwp": TABMWP, "logicvista": LOGICVISTA,
             "olympiadbench": OLYMPIAD, "mmk12": MMK12, "charxiv": CHARXIV, "hallusionbench": HALLUSION,
             "mm_math": MM_MATH, "m3cot": M3COT, "chartqa": CHARTQA}[name] | change  # fmt: skip
    return {
        "mathvista": _mathvista, "mathverse": _mathverse, "mathvision": _mathvision, "dynamath": _dynamath,
        "puzzlevqa": _puzzlevqa, "we_math": _we_math, "tabmwp": _tabmwp, "logicvista": _logicvista,
        "olympiadbench": _olympiadbench, "mmk12": _mmk12, "charxiv": _charxiv, "hallusionbench": _hallusionbench,
        "mm_math": _mm_math, "m3cot": _m3cot, "chartqa": _chartqa,
    }[name](root, first)  # fmt: skip


def _mathvista(root: Path, first: dict) -> Path:
    put(root / "images" / "5.jpg", BLUE)
    more = {"choices": None, "question_type": "free_form", "precision": 2, "answer": "14.14", "answer_type": "float",
            "unit": "cm", "pid": "7"}  # fmt: skip
    listed = more | {"precision": None, "answer": "[0, 2]", "answer_type": "list", "unit": None, "pid": "8"}
    put(root / "data" / "testmini.json", {"5": first, "7": MATHVISTA | more, "8": MATHVISTA | listed})
    put(root / "data" / "query.json", {"5": "Hint: ..."})
    put(root / "data" / "annot_testmini.json", {"5": {"question": "Find $x$."}})
    return root


def _mathverse(root: Path, first: dict) -> Path:
    put(root / "data" / "images" / "images_version_1-4" / "image_685.png", RED)
    put(root / "data" / "images" / "images_version_6" / "image_685.png", RED)
    only = {"sample_index": "3425", "problem_version": "Vision Only", "question": "",
            "image": "images_version_6/image_685.png"}  # fmt: skip
    put(root / "data" / "testmini.json", [first, MATHVERSE | only])
    text = {"sample_index": "330", "problem_version": "Text Only", "image": "", "question_type": "free-form",
            "question": "Find the bearing.", "answer": "S 23.5 ^\\circ W"}  # fmt: skip
    put(root / "data" / "testmini_text_only.json", [MATHVERSE | text])
    return root


def _mathvision(root: Path, first: dict) -> Path:
    put(root / "images" / "19.jpg", BLUE)
    free = {"id": "1", "options": [], "answer": "60", "question": "Which number?\n<image1>", "solution": "Add up."}
    put(root / "data" / "test.jsonl", (first, MATHVISION | free))
    put(root / "data" / "testmini.jsonl", (MATHVISION | free,))
    put(root / "outputs" / "open" / "m.jsonl", ({"id": "19", "model": "m", "response": "B", "correct": True},))
    return root


def _dynamath(root: Path, first: dict) -> Path:
    choice = {"question": "Is it even?\nChoice: (A) Yes  (B) No ", "answer": "B", "answer_type": "multiple choice",
              "image": "image/image54.png"}  # fmt: skip
    point = {"question": "Reflect it.", "answer": "(4, 3)", "answer_type": "text"}
    for folder in (root / "dataset", root / "samples and result" / "10trials" / "trial1"):
        put(folder / "image" / "image1.png", RED)
        put(folder / "image" / "image54.png", RED)
    put(root / "dataset" / "dataset.json", {"1": first, "54": DYNAMATH | choice, "133": DYNAMATH | point})
    put(root / "samples and result" / "10trials" / "trial1" / "dataset.json", {"1": DYNAMATH | {"answer": "3.1416"}})
    return root


def _puzzlevqa(root: Path, first: dict) -> Path:
    put(root / "PuzzleVQA" / "data" / "images" / "venn" / "venn_0012.png", RED)
    put(root / "PuzzleVQA" / "data" / "venn.json", (first, PUZZLE | {"options": [1, 2], "answer": "2"}))
    put(root / "AlgoPuzzleVQA" / "data" / "images" / "clock" / "clock_0039.jpg", BLUE)
    put(root / "AlgoPuzzleVQA" / "data" / "clock.json", (ALGO_PUZZLE,))
    return root


def _we_math(root: Path, first: dict) -> Path:
    put(root / "data" / "2steps" / "image" / "8-1.png", RED)
    put(root / "data" / "testmini.json", [first, WE_MATH | {"key": "2steps_multi", "answer": "C"}])
    put(root / "data" / "knowledge_structure_nodes.json", {"nodes": {"a": {"b": "c"}}})
    return root


def _tabmwp(root: Path, first: dict) -> Path:
    for key in ("1", "2"):
        put(root / "data" / "tabmwp" / "tables" / f"{key}.png", RED)
    choice = {"choices": ["surplus", "shortage"], "answer": "shortage", "unit": None, "ques_type": "multi_choice"}
    put(root / "data" / "tabmwp" / "problems_test1k.json", {"1": first, "2": TABMWP | choice})
    put(root / "data" / "tabmwp" / "splits.json", {"train": ["3"], "test": ["1", "2"]})
    return root


def _logicvista(root: Path, first: dict) -> Path:
    put(root / "data" / "images" / "v1_1.png", RED)
    listed = {"question": "How many? Select from A and B. (A) 10 (B) 12", "answer": "B"}
    number = {"question": "Select from 1-5", "answer": "3"}
    put(root / "data" / "dataset.json", {"v1_1": first, "v1_19": LOGICVISTA | listed, "v1_20": LOGICVISTA | number})
    return root


def _olympiadbench(root: Path, first: dict) -> Path:
    put(root / "images" / "img_3362.jpg", BLUE)
    put(root / "data" / "OE_MM_maths_en_COMP.json", [first])
    physics = {"id": 7, "context": "A train runs.", "question": "How fast?", "unit": "m/s", "final_answer": ["30"],
               "error": "1e-1"}  # fmt: skip
    put(root / "data" / "OE_TO_physics_en_COMP.json", [OLYMPIAD | physics])
    proof = {"final_answer": None, "answer_type": None, "question": "Prove it."}
    put(root / "data" / "TP_TO_maths_en_COMP.json", [OLYMPIAD | proof])
    return root


def _mmk12(root: Path, first: dict) -> Path:
    put(root / "eval" / "k12" / "images" / "4d61-b.png", RED)
    put(root / "eval" / "k12" / "k12.json", [first])
    return root


def _charxiv(root: Path, first: dict) -> Path:
    put(root / "images" / "7.jpg", RED)
    put(root / "images" / "8.jpg", RED)
    number = {"figure_id": 8, "query": "What is the step of the axis?", "answer": "0.25", "inst_category": 4}
    put(root / "data" / "reasoning_val.json", {"7": first, "8": CHARXIV | number})
    return root


def _hallusionbench(root: Path, first: dict) -> Path:
    put(root / "VD" / "illusion" / "0_0.png", RED)
    blind = {"category": "VS", "subcategory": "chart", "visual_input": "0", "filename": None, "gt_answer": "1"}
    put(root / "HallusionBench.json", [first, HALLUSION | blind])
    return root


def _mm_math(root: Path, first: dict) -> Path:
    put(root / "images" / "51.png", RED)
    put(root / "MM_Math.jsonl", (first,))
    return root


def _m3cot(root: Path, first: dict) -> Path:
    put(root / "data" / "images" / "5.png", RED)
    put(root / "data" / "test.jsonl", (first, M3COT | {"id": "geometry-6", "context": "", "answer": "A"}))
    return root


def _chartqa(root: Path, first: dict) -> Path:
    put(root / "test" / "png" / "17.png", RED)
    put(root / "test" / "test_human.json", [first])
    put(root / "test" / "test_augmented.json", [CHARTQA | {"label": "Yes"}])
    return root


def hub_record(name: str) -> tuple[dict, str]:
    """(the layout's first record as the hub's table holds it, the split of its file)."""
    image = {"bytes": RED, "path": None}
    return {
        "mathvista": (MATHVISTA | {"decoded_image": image, "query": "Hint"}, "testmini"),
        "mathverse": (MATHVERSE | {"image": image, "question_for_eval": "Find L."}, "testmini"),
        "mathvision": (MATHVISION | {"decoded_image": image}, "test"),
        "dynamath": ({"id": "1", "question": DYNAMATH["question"], "image": "images/1.png", "decoded_image": image,
                      "ground_truth": "2.0944", "answer_type": "float", "subject": "analytic geometry",
                      "knowledge_level": "high school"}, "sample_variant1"),
        "we_math": (WE_MATH | {"image_path": image}, "testmini"),
        "mmk12": ({key: MMK12[key] for key in ("id", "question", "answer")} | {"image": image, "subject": "math"},
                  "test"),
        "olympiadbench": (
            OLYMPIAD | {"question": "A snail:\n<image_1>\n\nDetermine $C$.", "image_1": image, "image_2": None,
                        "modality": "Multimodal", "difficulty": "Competition", "question_type": "Open-ended",
                        "subject": "Math", "language": "English"}, "train"),
        "charxiv": ({"category": "cs", "figure_path": "images/7.jpg", "num_subplots": 2, "image": image,
                     "reasoning_q": CHARXIV["query"], "reasoning_a": CHARXIV["answer"], "reasoning_a_type": 1,
                     "reasoning_q_source": 3, "descriptive_q1": 1, "descriptive_a1": "x"}, "validation"),
        "hallusionbench": (HALLUSION | {"image": image}, "image"),
        "m3cot": ({name: value for name, value in M3COT.items() if name != "image_path"} | {"image": image}, "test"),
        "chartqa": ({"image": image, "query": CHARTQA["query"], "label": ["Yes"], "human_or_machine": 1}, "test"),
        "mmmu": (MMMU, "validation"),
        "mmmu_pro": (MMMU_PRO, "test"),
        "mmmu_pro_vision": (MMMU_PRO_VISION, "test"),
    }[name]  # fmt: skip
