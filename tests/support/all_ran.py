"""Run pytest and fail if it ran nothing, or skipped everything: a tier that this machine can run must run."""

from __future__ import annotations

import sys

import pytest


class _Count:
    """Counts what ran and what was skipped."""

    ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once it has been called."""
        self.ran += report.when == "call" and not report.skipped


def main() -> int:
    """Return pytest's exit status, or 1 if no test ran."""
    count = _Count()
    status = int(pytest.main(["--durations=5", *sys.argv[1:]], plugins=[count]))
    if count.ran == 0:
        print("no test of this tier ran")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
