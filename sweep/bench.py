"""Measures how close each part of a sweep comes to the limits of this machine; prints a table, writes bench.json."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from model.system.files import replace_file
from model.system.streams import forgiving_streams
from sweep.config import QUICKSTART, ConfigError, blaming, load, named_files, parse_settings


@forgiving_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweep.bench", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--config", type=Path, default=QUICKSTART, help="YAML (default configs/quickstart.yaml)")
    add("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value, network.encoder.size=128")
    add("--sweep", action="store_true", help="also a whole sweep against the same written plainly; takes minutes")
    add("--output", type=Path, default=Path("bench.json"), metavar="FILE", help="default bench.json")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        settings = named_files.forget_digests(parse_settings("--set", options.set))
        config = load(options.config, settings)
        with blaming(options.config, settings):
            config = named_files.pinned(config)
        if not options.output.absolute().parent.is_dir():
            raise ConfigError([f"--output: must lie in a folder that is there, got {str(options.output)!r}"])
        console.print(f"{options.config.name}: about {'ten' if options.sweep else 'three'} minutes", style="dim")
        # Imported here: the processes that render import this file again, and torch would cost each of them seconds.
        from sweep.benchmark.measure import Benchmark

        with tempfile.TemporaryDirectory(prefix="crnn-bench-") as folder:
            with blaming(options.config, settings):
                benchmark = Benchmark(config, Path(folder))
            parts = [("trials and their parts", benchmark.trials), ("a sweep", benchmark.sweep)]
            if options.sweep:
                parts.append(("a longer sweep, ours and plainly written", benchmark.plain_sweep))
            for name, measure in parts:
                console.print(f"measuring {name} …", style="dim")
                measure()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    replace_file(options.output, (json.dumps(benchmark.figures, indent=2) + "\n").encode())
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (f"{options.config.name} on {benchmark.figures['device']}", "", ""):
        table.add_column(column)
    for row in benchmark.rows:
        table.add_row(*row)
    width = None if console.is_terminal else 160
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)
    print(f"\nfigures in {options.output}; ratios are medians (least … most)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
