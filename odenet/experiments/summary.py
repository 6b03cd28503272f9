"""After a multirun: one summary over the runs that differ in nothing but their seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from odenet.artifacts import read_json, write_json
from odenet.errors import RunError
from odenet.experiments.config import fingerprint
from odenet.experiments.folder import RESULTS, read_config


def remember_job(folder: Path) -> None:
    """Inside a multirun: note in the sweep's folder which run folder this job made."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        write_json(Path(hydra.sweep.dir) / "jobs" / f"{hydra.job.num}.json", {"folder": str(folder.resolve())})


class SeedSummary(Callback):
    """Hydra callback: writes `summary.md`, `.csv` and `.json` for each group of comparisons that differ in the seed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Group the finished jobs by their config without the seed, and write a summary of each group."""
        from odenet.experiments.claims import judge, sentences
        from odenet.experiments.report import write_seed_summary

        sweep = Path(config.hydra.sweep.dir)
        groups: dict[str, list[dict[str, Any]]] = {}
        for job in sorted((sweep / "jobs").glob("*.json"), key=lambda path: int(path.stem)):
            folder = Path(read_json(job)["folder"])
            try:
                results = read_json(folder / RESULTS)
            except RunError:
                continue
            identity = {k: v for k, v in read_config(folder).items() if k != "seed"}
            groups.setdefault(fingerprint(identity), []).append(results)
        for name, results in groups.items():
            target = sweep if len(groups) == 1 else sweep / name
            write_seed_summary(target, results)
            print(f"summary over seeds {', '.join(str(r['seed']) for r in results)}: {target / 'summary.md'}")
            if (claim := judge(results)) is not None:
                print(*sentences(claim, [r["seed"] for r in results]), sep="\n")
