"""Small benchmark folders in their authors' layouts, with more rows than those of the readers' tests."""

from pathlib import Path

from tests.builders import picture
from tests.data_prep.benchmark_files import MATHVISTA, build, put

NUM_ROWS = 10


def plant_mathvista(root: Path, num_rows: int = NUM_ROWS) -> Path:
    """MathVista testmini with that many rows, every second with choices."""
    folder = root / "mathvista"
    rows = {}
    for index in range(num_rows):
        name = f"images/{index}.png"
        put(folder / name, picture(56, 56, seed=index))
        change = {"question": f"What is red plus {index}?", "image": name, "pid": str(index)}
        if index % 2:
            change |= {"choices": None, "question_type": "free_form", "answer": str(index), "answer_type": "integer"}
        rows[str(index)] = MATHVISTA | change
    put(folder / "data" / "testmini.json", rows)
    return folder


def plant_mathverse(root: Path) -> Path:
    """MathVerse with two versions of one problem."""
    return build("mathverse", root)
