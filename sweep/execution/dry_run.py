"""`--dry-run`: prints what a sweep would do, without starting anything."""

from collections.abc import Sequence

import torch

from model.config import TrialConfig
from model.data.pools import pool_sizes
from model.network.crnn import CRNN
from sweep.config import SweepConfig, walk
from sweep.machine.resources import Allotment
from sweep.search.samplers import limit
from sweep.search.search import Search


def show(config: SweepConfig, allotment: Allotment, notes: Sequence[str]) -> None:
    """Prints the config, the search space, five sampled trials and the disk space that a sweep needs."""

    search = Search(config, None)
    print(config.yaml)
    if (limited := limit(config.search)) is not None:
        print(f"# {limited}")
    print(f"# {search.trials} trials over")
    for note in notes:
        print(f"# {note.strip()}")
    for path, parameter, given in walk(config.search.space):
        condition = "".join(f"  if {key} = {value}" for key, value in given.items())
        print(f"#   {path}: {parameter}{condition}")
    print("# for example")
    for _ in range(5):
        if (record := search.ask()) is not None:
            print(f"#   {record.name}")
    if config.confirm is not None:
        print(f"# then the best {config.confirm.top} again, with {config.confirm.seeds} fresh seeds each")
    images = sum(pool_sizes(config, test=config.confirm is not None).values())
    running, kept = allotment.at_once * resume_bytes(config), search.most * best_bytes(config)
    print("# disk")
    print(f"#   images: {megabytes(images)} in {config.data.cache}")
    print(f"#   checkpoints to resume from: {megabytes(running)}, two for each of {allotment.at_once} trials at once")
    print(f"#   checkpoints that stay: {megabytes(kept)}, best.pt of each trial")


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def best_bytes(config: TrialConfig) -> int:
    """Size of a trial's `best.pt` in bytes: the network's weights."""
    with torch.device("meta"):
        network = CRNN(config)
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def resume_bytes(config: SweepConfig) -> int:
    """Size in bytes of the two checkpoints that a running trial keeps: the weights, the optimiser's moments, and the
    EMA of the weights if early stopping compares it."""
    moments = {"adam": 2, "adamw": 2, "sgd": 1 if config.optimizer.momentum else 0}
    return 2 * best_bytes(config) * (1 + moments[config.optimizer.name] + config.averages)
