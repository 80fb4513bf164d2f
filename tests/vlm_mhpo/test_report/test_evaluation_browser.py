"""The evaluation page in a real browser: filters, search, paging, keyboard, links, hostile texts, phone and dark."""

import json

import pytest

from tests.vlm_mhpo.browsing import chromium, needs_browser, opened
from tests.vlm_mhpo.test_report.evaluation_cases import HOSTILE, LINK, hostile_folders, large_folders, small_folders
from vlm_mhpo.pages.evaluation_page import write_page

pytestmark = [pytest.mark.full, needs_browser]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of seven rows."""
    folder = tmp_path_factory.mktemp("small")
    after, before = small_folders(folder)
    return write_page(after, folder, before).as_uri()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The page of 2,000 rows and 300 images."""
    folder = tmp_path_factory.mktemp("large")
    after, before = large_folders(folder)
    return write_page(after, folder, before)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page whose texts are all hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    after, before = hostile_folders(folder)
    return write_page(after, folder, before).as_uri()


def ids(page) -> list[str]:
    """The rows on the page, by the second word of their label."""
    return [
        label.split()[1].rstrip(",")
        for label in page.eval_on_selector_all(".row", "rows => rows.map(r => r.ariaLabel)")
    ]


def shown(page) -> str:
    return page.inner_text("#shown")


def test_filters_narrow_the_rows_and_count_what_they_would_show(browser, small):
    with opened(browser, small) as (page, complaints):
        assert shown(page) == "1–7 of 7 problems" and len(ids(page)) == 7
        labels = page.eval_on_selector_all(".filters label", "all => all.map(l => l.innerText.trim())")
        assert labels == ["all 7", "wrong → right 2", "right → wrong 1", "still wrong 2", "right 2", "rules disagree 0"]
        page.check("input[value=fixed]", force=True)
        assert ids(page) == ["s1", "s5"] and page.url.endswith("#outcome=fixed")
        page.check("input[value=broken]", force=True)
        assert ids(page) == ["s2"]
        page.check('input[name=outcome][value=""]', force=True)
        page.select_option("select[name=benchmark]", "words")
        assert ids(page) == ["w1", "w2"]
        page.select_option("select[name=verdict]", "wrong")
        assert ids(page) == ["w2"]
        page.select_option("select[name=benchmark]", "")
        assert ids(page) == ["s2", "s3", "w2"]
        page.select_option("select[name=category]", "level = 3")
        assert ids(page) == ["s3"]
        assert complaints == []


def test_both_sides_of_a_row_stand_beside_each_other(browser, small):
    with opened(browser, small, viewport={"width": 1280, "height": 900}) as (page, _):
        before, after = (box.bounding_box() for box in page.query_selector_all(".row:first-child .side"))
        assert before["y"] == after["y"] and before["x"] + before["width"] <= after["x"]
        assert page.inner_text(".row:first-child .side:first-child pre") == "before says 6"
        picture = page.query_selector(".row:first-child img")
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 40


def test_search_finds_questions_answers_and_completions_in_any_case(browser, small):
    with opened(browser, small) as (page, complaints):
        for words, expected in (
            ("IN S3", ["s3"]),
            ("after says 6", ["s2", "s3", "w2"]),
            ("before says 6", ["s1", "s3", "s5", "w2"]),
        ):
            page.fill("input[name=q]", words)
            assert ids(page) == expected
        page.fill("input[name=q]", "nowhere")
        assert shown(page) == "no problem" and "Nothing matches" in page.inner_text("#rows")
        page.fill("input[name=q]", "")
        assert len(ids(page)) == 7 and complaints == []


def test_the_address_opens_what_it_names(browser, small):
    with opened(browser, small + "#item=words%2Fw2") as (page, _):
        assert page.evaluate("document.activeElement.ariaLabel") == "problem w2, still wrong"
    with opened(browser, small + "#outcome=fixed&q=s5") as (page, _):
        assert ids(page) == ["s5"] and page.input_value("input[name=q]") == "s5"
    with opened(browser, small + "#outcome=nonsense&benchmark=none&page=99") as (page, complaints):
        assert len(ids(page)) == 7 and complaints == []
        page.click("table.axis >> text=2 >> nth=0")
        assert ids(page) == ["s2"]


def test_a_large_page_opens_pages_and_stays_light(browser, large, record_property):
    with opened(browser, large.as_uri()) as (page, complaints):
        (opening,) = page.evaluate("performance.getEntriesByType('navigation').map(n => n.loadEventEnd)")
        record_property("open_ms", opening)
        record_property("megabytes", large.stat().st_size / 1e6)
        assert opening < 60_000  # only a hang is longer, however busy the machine is
        assert large.stat().st_size < 20_000_000
        assert shown(page) == "1–10 of 2000 problems"
        assert page.evaluate("document.querySelectorAll('*').length") < 2_000
        assert page.evaluate("JSON.parse(document.getElementById('data').textContent).pictures.length") == 300
        page.click("[data-go=on] >> nth=0")
        assert shown(page) == "11–20 of 2000 problems" and page.url.endswith("#page=2")
        page.click("[data-go=last]")
        assert shown(page) == "1991–2000 of 2000 problems"
        assert page.is_disabled("[data-go=on] >> nth=0") and not page.is_disabled("[data-go=back] >> nth=0")
        page.fill("input[name=q]", "r199")
        assert shown(page) == "1–10 of 11 problems"  # r199 and r1990 to r1999
        assert complaints == []


def test_the_page_is_usable_without_a_mouse(browser, large):
    with opened(browser, large.as_uri()) as (page, _):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("ArrowRight")
        assert shown(page).startswith("11–20")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.name") == "q"
        page.keyboard.type("r5")
        page.keyboard.press("ArrowRight")  # belongs to the field
        assert shown(page).startswith("1–10 of ")
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.className").startswith("row"):
                break
        first = page.evaluate("document.activeElement.ariaLabel")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("ArrowDown")
        second = page.evaluate("document.activeElement.ariaLabel")
        page.keyboard.press("ArrowUp")
        assert first == page.evaluate("document.activeElement.ariaLabel") != second
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.className").startswith("row") and shown(page).startswith("11–20")


def test_every_control_has_a_name_and_every_picture_words(browser, small):
    with opened(browser, small) as (page, _):
        unnamed = page.evaluate(
            """[...document.querySelectorAll('button, select, input, a, img, nav, pre')].filter(e =>
               !(e.ariaLabel || e.alt || e.textContent.trim() || (e.labels && e.labels.length))).length"""
        )
        assert unnamed == 0


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(320, 640, "light"), (390, 844, "dark"), (768, 1024, "light"), (1280, 900, "dark")],
)
@pytest.mark.parametrize("kind", ["small", "hostile"])
def test_nothing_overflows_in_light_or_dark(browser, request, kind, width, height, scheme):
    address = request.getfixturevalue(kind)
    viewport = {"width": width, "height": height}
    with opened(browser, address, viewport=viewport, color_scheme=scheme) as (page, complaints):
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
        assert light == (scheme == "light") and complaints == []


def test_hostile_texts_run_nothing_and_are_shown_as_written(browser, hostile):
    with opened(browser, hostile) as (page, complaints):
        assert page.title() == f"{HOSTILE}after · evaluation report"
        assert page.locator("script").count() == 2 and page.locator("img, iframe, object, embed").count() == 0
        assert page.evaluate("[...document.querySelectorAll('[onerror], [onclick], [onload]')].length") == 0
        texts = page.eval_on_selector_all(
            "#rows pre, #rows .problem, #rows .choices li", "all => all.map(e => e.textContent)"
        )
        assert texts.count(HOSTILE) == 2 * (1 + 1 + 2) and texts.count(LINK) == 2  # rows x (problem, choice, answers)
        assert (
            page.eval_on_selector_all("a", "all => all.filter(a => !a.getAttribute('href').startsWith('#')).length")
            == 0
        )
        page.click("#rows details summary >> nth=0")
        page.wait_for_selector(f"#rows details pre:text-is('{LINK}')")
        page.click("table.axis a >> nth=0")
        assert shown(page) == "1–2 of 2 problems"
        page.goto(page.url.split("#")[0] + "#q=%3Cscript%3E&benchmark=<img src=x onerror=alert(1)>")
        page.reload()
        assert page.input_value("input[name=q]") == "<script>" and shown(page) == "1–2 of 2 problems"
        assert complaints == []


def test_a_printed_page_has_the_tables_and_no_controls(browser, small):
    with opened(browser, small) as (page, _):
        page.emulate_media(media="print")
        assert not page.is_visible("#controls") and page.is_visible("table.results") and page.is_visible(".row")
        assert len(page.pdf()) > 10_000


def test_the_tables_do_not_need_the_script(browser, small):
    with opened(browser, small, java_script_enabled=False) as (page, _):
        assert "60.0" in page.inner_text("table.results") and "need JavaScript" in page.inner_text("#gallery")


def test_a_row_shows_its_other_completions_on_demand(browser, tmp_path):
    after, _ = small_folders(tmp_path)
    path = after / "results/words.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    completions = [
        row["completions"][0] | {"text": f"number {n}", "official": n > 1, "correct": n > 2} for n in range(4)
    ]
    path.write_text(json.dumps(row | {"completions": completions}) + "\n")
    with opened(browser, write_page(after, tmp_path).as_uri() + "#outcome=disputed") as (page, _):
        assert ids(page) == ["w1"] and "2 of 4 right" in page.inner_text(".row")
        assert page.locator(".row pre").count() == 1
        page.click(".row summary")
        page.wait_for_selector(".row pre:text-is('number 3')")
        assert page.locator(".row pre").count() == 4 and "official rule: right" in page.inner_text(".row")
