"""The page at / in headless Chromium, on the demo model: chatting, files, what is kept, and what goes wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyheadkv.chat import demo
from tests.e2e.served import TIMEOUT_S, ServerProcess, serving

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here")
expect, Page = playwright.expect, playwright.Page

N_CTX = 2048
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def server(library: None, demo_path: Path) -> Iterator[ServerProcess]:
    with serving(demo_path, "-c", N_CTX, "-t", "1", "--budget", "25%", "--temp", "0", "-n", "12") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: playwright.Browser, server: ServerProcess) -> Iterator[Page]:
    """The page in a tab of its own; nothing may be asked of another host, and its program must not fail."""
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        yield opened(context, server)
        for tab in context.pages:
            assert tab.evaluate("performance.getEntriesByType('resource').every((it) => it.name.startsWith(origin))")


def opened(context: playwright.BrowserContext, server: ServerProcess) -> Page:
    tab = context.new_page()
    tab.set_default_timeout(TIMEOUT_S * 1000)
    expect.set_options(timeout=TIMEOUT_S * 1000)
    tab.on("pageerror", lambda error: pytest.fail(f"the page's program failed: {error}"))
    tab.on("console", lambda line: "Content Security Policy" not in line.text or pytest.fail(line.text))
    tab.goto(server.url)
    expect(tab.locator("#model")).to_contain_text("context of 2048 tokens")
    return tab


def say(tab: Page, text: str) -> None:
    tab.get_by_label("Message", exact=True).fill(text)
    tab.keyboard.press("Enter")


def answered(tab: Page, n_turns: int) -> str:
    """What was said in this turn."""
    expect(tab.locator("#turns tbody tr")).to_have_count(n_turns)
    expect(tab.locator("#status")).to_have_text("Answered.")
    return tab.locator(".message.assistant").last.inner_text()


def test_a_chat_about_a_file(page: Page, tmp_path: Path) -> None:
    log = demo.named_file("sample")
    page.get_by_text("Settings").click()
    page.get_by_label("System prompt").fill(demo.SYSTEM)
    page.get_by_label("Add files").set_input_files(log)
    expect(page.get_by_label("Remove log.txt")).to_be_visible()
    say(page, demo.QUESTION)
    assert "4827" in answered(page, 1)
    expect(page.locator("#memory")).to_contain_text("% of a whole cache")
    expect(page.locator("#map td")).to_have_count(90)
    say(page, "And when does the ferry leave?")
    answered(page, 2)
    read, reused = (int(page.locator(f"#turns tbody tr:last-child td:nth-child({n})").inner_text()) for n in (2, 3))
    assert 0 < read < 60 < reused

    page.locator("#map td").nth(31).hover()
    expect(page.locator("#head")).to_contain_text("layer 1, KV head 1: ")
    page.locator("#map td").nth(31).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#head")).to_contain_text("layer 2, KV head 2: ")
    text = log.read_text()
    page.locator("#strip i").nth(64 * text.index("4827") // len(text)).hover()
    expect(page.locator("#place-words")).to_contain_text("4827")
    page.screenshot(path=tmp_path / "light.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "dark.png")
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=tmp_path / "narrow.png", full_page=True)
    print(f"screenshots are in {tmp_path}")

    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    expect(page.locator("#turns tbody tr")).to_have_count(2)
    say(page, "Thank you.")
    answered(page, 3)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)


def test_an_answer_is_streamed_and_can_be_stopped(page: Page) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Tokens of an answer").fill("1500")
    say(page, "Count from one to a thousand, number by number.")
    expect(page.locator(".message.assistant")).to_contain_text("2")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.get_by_label("Tokens of an answer").fill("4")
    say(page, "Say hello.")
    answered(page, 1)
    expect(page.locator(".message")).to_have_count(4)  # what was said before it was stopped counts


def test_two_tabs_have_their_own_conversations(page: Page, server: ServerProcess) -> None:
    other = opened(page.context, server)
    say(page, "My number is 1357. Say my number.")
    say(other, "My number is 8642. Say my number.")
    assert "1357" in answered(page, 1) and "8642" in answered(other, 1)
    say(page, "Say it again.")
    answered(page, 2)
    expect(other.locator(".message")).to_have_count(2)


def test_what_is_too_long_or_wrong_is_said_and_nothing_is_lost(page: Page, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("The ferry leaves at nine. " * 80_000)  # 2 MB
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    page.get_by_label("Add files").set_input_files([tmp_path / "long.txt", tmp_path / "picture.png"])
    expect(page.get_by_role("alert")).to_have_text("picture.png is not UTF-8 text.")
    say(page, "Sum it up.")
    expect(page.get_by_role("alert")).to_contain_text("no text of more than 524288 fits into the context")
    expect(page.get_by_label("Message", exact=True)).to_have_value("Sum it up.")
    expect(page.locator(".message")).to_have_count(0)
    page.get_by_label("Remove long.txt").click()
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("-1")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("temperature: ")
    page.get_by_label("Temperature").fill("")
    page.get_by_role("button", name="Send").click()
    answered(page, 1)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_key_is_asked_for(browser: playwright.Browser, library: None, demo_path: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("secret-key\n")
    with serving(demo_path, "-c", "512", "-t", "1", "--api-key-file", tmp_path / "keys.txt") as server:
        tab = browser.new_page()
        tab.goto(server.url)
        expect(tab.get_by_role("alert")).to_contain_text("a key is needed")
        tab.get_by_text("Settings").click()
        tab.get_by_label("Key", exact=True).fill("secret-key")
        tab.get_by_label("Key", exact=True).press("Enter")
        expect(tab.locator("#model")).to_contain_text("context of 512 tokens")
        tab.close()
