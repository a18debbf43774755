"""`python -m model.captchas OUT --count N [--config FILE]` writes sample captchas named TEXT_<index>.png."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.config import TrialConfig
from model.config.from_file import read_config
from model.data.captchas import draw
from model.system.files import reason
from model.system.interruption import interruptible
from model.system.streams import forgiving_streams


@forgiving_streams()
@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.captchas", description="Write sample captcha images.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the images; made if it is not there")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="how many (default 16)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML whose captcha: and data: sections to use")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count: must be at least 1, got {options.count}")
    try:
        config = read_config(options.config) if options.config else TrialConfig()
        for index in range(options.count):
            image, text = draw(config.drawn, config.data.seed, "test", index)
            options.out.mkdir(parents=True, exist_ok=True)  # not before drawing, which may fail
            image.save(options.out / f"{text}_{index}.png")
    except FileExistsError:
        print(f"OUT must be a folder, got the file {options.out}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"OUT {options.out} can't be written: {reason(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        size = f"{config.drawn.width}×{config.drawn.height} × captcha.render_scale {config.drawn.render_scale}"
        print(f"images of {size} take more memory than there is; draw smaller ones", file=sys.stderr)
        return 2
    except ValueError as error:  # an invalid config; the message names the file and keys
        print(error, file=sys.stderr)
        return 2
    print(f"{options.count} images in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
