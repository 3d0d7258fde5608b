"""What programs read: each page as Markdown beside its HTML, and llms.txt, the list of all; and links that leave docs/."""

import os
import re
from pathlib import Path

from .contents import PARTS


DOCS = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(((?:\.\./)+[^)\s#]+)(#[^)\s]*)?\)")

# Files of the repository that are pages of the site, or have one in their place.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def repointed(docname: str, text: str) -> str:
    """Return a page whose links to files of the repository are links to pages, or name the file."""
    here = (DOCS / docname).parent

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found.groups()
        target = Path(os.path.normpath(here / path))
        if not target.is_relative_to(DOCS):
            name = target.relative_to(DOCS.parent).as_posix()
            if name not in PAGES:
                return text if f"`{name}`" == text else f"{text} (`{name}` in the repository)"
            target, anchor = DOCS / PAGES[name], None
            if target.with_suffix("") == DOCS / docname:
                return f"`{name}`"
        return f"[{text}]({Path(os.path.relpath(target, here)).as_posix()}{anchor or ''})"

    return _LINK.sub(link, text)


def keep(app: object, docname: str, source: list[str]) -> None:
    """Repoint the links of a page, and keep it as it is for those who read Markdown."""
    source[0] = repointed(docname, source[0])
    plain = re.sub(r"\{py:obj\}`~[\w.]+\.(\w+)`", r"`\1`", source[0])
    app.env.__dict__.setdefault("safeagent_markdown", {})[docname] = plain


def publish(app: object, error: Exception | None) -> None:
    """Write the Markdown of each page, and llms.txt."""
    if error is not None or app.builder.format != "html":
        return
    out, pages = Path(app.outdir), app.env.safeagent_markdown
    for docname, text in pages.items():
        (out / f"{docname}.md").write_text(text, encoding="utf-8")
    (out / "llms.txt").write_text(llms_txt(pages), encoding="utf-8")
    whole = "\n\n".join(f"<!-- {name}.md -->\n\n{text}" for name, text in sorted(pages.items()))
    (out / "llms-full.txt").write_text(whole, encoding="utf-8")


def llms_txt(pages: dict[str, str]) -> str:
    """Return the list of all pages in the form of https://llmstxt.org, from the lists of the parts."""
    first = pages["index"].split("\n\n")
    lines = [first[0], "", "> " + first[1].replace("\n", " ").replace("**", ""), "", first[2].replace("\n", " ")]
    for part in PARTS[1:]:
        lines += ["", "## " + pages[part].partition("\n")[0].removeprefix("# "), ""]
        found = re.findall(r"^\* (\[[^\]]+\]\([\w/.-]+\.md\).*)$", pages[part], re.MULTILINE)
        lines += [f"- {entry}" for entry in found]
    return "\n".join(lines) + "\n"


def setup(app: object) -> dict[str, bool]:
    """Connect to Sphinx, after everything that changes a page."""
    app.connect("source-read", keep, priority=550)
    app.connect("build-finished", publish)
    return {"parallel_read_safe": False}
