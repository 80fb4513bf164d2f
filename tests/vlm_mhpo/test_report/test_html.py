"""The kit of the pages: where its templates lie, and that an installed package has them."""

import tomllib
from pathlib import Path

from vlm_mhpo.pages.html import environment

ROOT = Path(__file__).resolve().parents[3]
KIT = Path("vlm_mhpo/pages/html.py")
# Makes no page: it renders chat templates as transformers does, and reads the errors of that.
CHAT_TEMPLATES = Path("vlm_mhpo/models/template.py")


def test_an_installed_package_holds_every_file_that_is_no_program():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        file
        for package, patterns in settings.items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    found = {
        file
        for package in ("vlm_mhpo", "data_prep", "rewards")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert found == packed and found


def test_one_environment_reads_every_template_and_escapes():
    engine = environment()
    for name in engine.list_templates(extensions=["j2"]):
        engine.get_template(name)
    assert {"page.html.j2", "evaluation.html.j2", "audit.html.j2", "study.html.j2"} <= set(engine.list_templates())
    assert engine.from_string("{{ text }}").render(text="<b>&") == "&lt;b&gt;&amp;"


def test_pages_are_made_by_this_kit_alone():
    others = [
        str(file.relative_to(ROOT))
        for package in ("vlm_mhpo", "data_prep", "rewards")
        for file in (ROOT / package).rglob("*.py")
        if "jinja2" in file.read_text() and file.relative_to(ROOT) not in (KIT, CHAT_TEMPLATES)
    ]
    assert others == []
