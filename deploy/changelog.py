"""Join the fragments of changelog.d into a section of CHANGELOG.md: `python deploy/changelog.py VERSION [DATE]`."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"feature": "New", "change": "Changed", "fix": "Fixed", "removal": "Removed"}


def section(version: str, date: str, fragments: dict[str, list[str]]) -> str:
    """Render one version.

    >>> print(section("1.0", "2030-01-02", {"fix": ["It works."]}))
    ## 1.0 (2030-01-02)
    <BLANKLINE>
    ### Fixed
    <BLANKLINE>
    - It works.
    <BLANKLINE>
    """
    lines = [f"## {version} ({date})", ""]
    for kind, title in KINDS.items():
        if fragments.get(kind):
            lines += [f"### {title}", "", *(f"- {text}" for text in fragments[kind]), ""]
    return "\n".join(lines)


def main() -> int:
    """Write the section above the older ones and remove the fragments."""
    version, *rest = sys.argv[1:]
    files = [path for path in sorted((ROOT / "changelog.d").glob("*.md")) if path.name != "README.md"]
    fragments: dict[str, list[str]] = {}
    for path in files:
        fragments.setdefault(path.name.split(".")[-2], []).append(path.read_text().strip())
    unknown = fragments.keys() - KINDS.keys()
    if unknown:
        print(f"unknown kind of fragment: {', '.join(sorted(unknown))}; use one of {', '.join(KINDS)}", file=sys.stderr)
        return 2
    log = ROOT / "CHANGELOG.md"
    head, _, older = (log.read_text() if log.exists() else "# Changes\n").partition("\n## ")
    date = rest[0] if rest else datetime.datetime.now(datetime.UTC).date().isoformat()
    log.write_text(head.rstrip() + "\n\n" + section(version, date, fragments) + (f"\n## {older}" if older else ""))
    for path in files:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
