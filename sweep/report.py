"""`python -m sweep.report runs/NAME` writes the report.html of a sweep that has ended, was interrupted or still runs.

`python -m sweep.report A B` writes a page that compares two sweeps.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.system.interruption import interruptible
from model.system.streams import forgiving_streams
from sweep.config import ConfigError, layout, load
from sweep.config.workplace import Workplace
from sweep.wording import faults

if TYPE_CHECKING:
    from sweep.verdict.verdict import Verdict


@forgiving_streams()
@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.report", description="Write a sweep's report.html, or a page that compares two sweeps."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a sweep's folder, runs/NAME")
    parser.add_argument("other", type=Path, metavar="OTHER", nargs="?", help="another one, to compare with")
    options = parser.parse_args(arguments)
    # Imported here, as below: it takes seconds, in which Ctrl-C may come.
    from sweep.verdict.comparison import Comparison
    from sweep.verdict.page import is_writable, write_page

    try:
        verdict = _verdict("FOLDER", options.folder)
        if options.other is None:
            page = write_page(verdict)
        else:
            comparison = Comparison(verdict, _verdict("OTHER", options.other))
            print(*comparison.sentences, sep="\n")
            root = verdict.workplace.root
            page = comparison.write(root if is_writable(root) else Path.cwd())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        # The folder may hold anything, so any error may come: the user gets its cause in a sentence, not a traceback.
        outside = faults.surroundings(error)
        print(f"no report could be made: {outside or faults.one_line(error)}", file=sys.stderr)
        return faults.INTERNAL if outside is None else 2
    print(os.path.relpath(page))
    return 0


def _verdict(argument: str, root: Path) -> "Verdict":
    """The verdict on the sweep in a folder, which is opened read-only. Raises ConfigError."""
    from sweep.search.search import Search
    from sweep.verdict.verdict import Verdict

    layout.require(argument, root)
    missing = [name for name in ("sweep.yaml", "study.db") if not (root / name).is_file()]
    if missing:
        raise ConfigError([f"{argument}: must be a sweep's folder, got '{root}': there is no {missing[0]} in it"])
    config = load(root / "sweep.yaml")
    workplace = Workplace(root.absolute(), Path(str(config.data.cache)), threads=1, gpus=0)
    return Verdict(config, workplace, Search(config, root / "study.db", read_only=True))


if __name__ == "__main__":
    sys.exit(main())
