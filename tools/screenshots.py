"""Make the pictures of the interfaces that the READMEs show, with a Chromium of the system.

python tools/screenshots.py                                  # the conversation, with SmolLM2
python tools/screenshots.py --classifier runs/gpt_class_finetune   # and the table of labels
"""

import argparse
import runpy
import shutil
import sys
from pathlib import Path

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

from playwright.sync_api import Page, sync_playwright

from llms_from_scratch.app.interface import launch
from llms_from_scratch.app.script_tools import short_errors

ROOT = Path(__file__).resolve().parent.parent
SIZE = {"width": 1200, "height": 820}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHAT = "ch05/06_user_interface"
SPAM = "ch06/04_user_interface"
QUESTION = "What is the capital of France?"
MESSAGES = [
    "You have won a $1000 cash prize! Call 09061701461 now to claim it",
    "Hey, just wanted to check if we're still on for dinner tonight?",
    "URGENT! Your mobile number was selected, text WIN to 80086",
    "I'll be there in ten minutes, can you bring <b>the keys</b>?",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", default="smollm2-135m-instruct", help="default: smollm2-135m-instruct"
    )
    parser.add_argument("--classifier", help="a folder of gpt_class_finetune.py")
    args = parser.parse_args()
    with short_errors(parser):
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            raise ValueError(f"there is none of {', '.join(BROWSERS)}: install Chromium")
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            picture(chromium, f"{CHAT}/app_orig.py", args.model, talk, f"{CHAT}/figures/chat.png")
            if args.classifier:
                target = f"{SPAM}/figures/spam.png"
                picture(chromium, f"{SPAM}/app.py", args.classifier, classify, target)
            chromium.close()
    return 0


def picture(chromium, app: str, model: str, use, target: str) -> None:
    """Show the page of an app, ``use`` it as a person would, and write what is to be seen."""
    make_page = runpy.run_path(str(ROOT / app))["make_page"]
    with make_page(model, "cpu") as blocks:
        tab = chromium.new_page(viewport=SIZE)
        tab.goto(launch(blocks, 0, wait=False))
        tab.locator("#message textarea").wait_for()
        tab.wait_for_timeout(1000)  # until it listens
        use(tab)
        tab.wait_for_timeout(500)
        (ROOT / target).parent.mkdir(exist_ok=True)
        tab.screenshot(path=ROOT / target)
        tab.close()
        blocks.close(verbose=False)
    print(f"Wrote {target}")


def talk(tab: Page) -> None:
    tab.locator("#message textarea").fill(QUESTION)
    tab.get_by_role("button", name="Send", exact=True).click()
    tab.wait_for_function("document.querySelector('#figures textarea').value.includes('ended')")


def classify(tab: Page) -> None:
    tab.locator("#message textarea").fill("\n".join(MESSAGES))
    tab.get_by_role("button", name="Classify").click()
    tab.wait_for_function(f"document.querySelectorAll('#labels tr').length == {len(MESSAGES) + 1}")


if __name__ == "__main__":
    sys.exit(main())
