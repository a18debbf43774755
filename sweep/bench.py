"""Measures how close each part of a sweep comes to the limits of this machine; prints a table, writes bench.json."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.system.files import replace_file
from model.system.interruption import interruptible
from model.system.streams import forgiving_streams
from sweep.benchmark.conversion import Conversion
from sweep.config import QUICKSTART, ConfigError, blaming, load, named_files, parse_settings
from sweep.machine.cpus import usable_cpus


@forgiving_streams()
@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweep.bench", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--config", type=Path, default=QUICKSTART, help="YAML (default configs/quickstart.yaml)")
    add("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value, network.encoder.size=128")
    add("--images", metavar="FOLDER", help="measure instead how fast these images of your own are converted")
    add("--sweep", action="store_true", help="also a whole sweep against the same written plainly; takes minutes")
    add("--driver", type=int, metavar="N", help="measure instead the sweep's own process, in a sweep of N trials")
    add("--output", type=Path, default=Path("bench.json"), metavar="FILE", help="default bench.json")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        settings = named_files.forget_digests(parse_settings("--set", options.set))
        if options.driver is not None and not 1 <= options.driver < 2**31:
            raise ConfigError([f"--driver must be at least 1 and below {2**31}, got {options.driver}"])
        config = load(options.config, settings)
        if config.captcha is None and options.images is None and options.driver is None:
            raise ConfigError(
                ["captcha must be there to measure trials, got own images: --images FOLDER measures those"]
            )
        with blaming(options.config, settings):
            config = named_files.pinned(config)
        if not options.output.absolute().parent.is_dir():
            raise ConfigError([f"--output: must lie in a folder that is there, got {str(options.output)!r}"])
        if options.images is not None:
            conversion = Conversion(options.images, usable_cpus())
            console.print(f"measuring the conversion of {options.images} …", style="dim")
            conversion.measure()
            return _show(options.images, conversion.figures, conversion.rows, options.output, console)
        if options.driver is not None:
            # Imported here, as below.
            from sweep.benchmark.driver import Driver

            with tempfile.TemporaryDirectory(prefix="crnn-bench-") as folder:
                driver = Driver(config, options.driver, Path(folder))
                console.print(f"replaying sweeps of {options.driver:,} trials without training …", style="dim")
                driver.measure()
            return _show(options.config.name, driver.figures, driver.rows, options.output, console)
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
    except ValueError as error:  # a ConfigError, or images that can't be used
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        raise KeyboardInterrupt("\ninterrupted: nothing was written") from None
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return _show(options.config.name, benchmark.figures, benchmark.rows, options.output, console)


def _show(
    subject: str, figures: dict[str, Any], rows: Sequence[tuple[str, str, str]], output: Path, console: Console
) -> int:
    """Writes the figures and prints the table. Returns the exit code."""
    replace_file(output, (json.dumps(figures, indent=2) + "\n").encode())
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (f"{subject} on {figures['device']}", "", ""):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    width = None if console.is_terminal else 160
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)
    print(f"\nfigures in {output}; ratios are medians (least … most)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
