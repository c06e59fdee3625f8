"""Training of the image networks: generator and critics in turn, to be stopped and gone on with anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.batch_order import EpochBatches, FaceSamples, PlacedSamples, part_of
from models.distributed import World
from models.ema import AveragedWeights
from models.schedule import EpochPlan, n_epochs, plan_epoch
from models.step_guard import StepGuard
from models.stop_request import StopRequest, stand_apart
from models.train_step import DiscriminatorStep, GeneratorStep, Judges
from models.training_log import TrainingLog
from models.training_state import Position, RunFolder, TrainingState, resume
from options.groups import OptimiserFlags
from options.scripts import TrainOptions
from util.batch import FaceBatch, Synthesis
from util.errors import UserError, remark

TRUE_PREVIOUS = 0.5  # how often the second frame of a slice follows the true first one


OnStep = Callable[[Position, "StepResult"], None]


@dataclass(frozen=True)
class StepResult:
    """What one step gave."""

    losses: dict[str, float]  # mean over the processes; "d_*" are the critics'
    made: list[Synthesis]  # the T frames
    fault: str = ""  # why the step, or its critics' half, was not taken
    stop: bool = False  # a process was told to stop


class ImageTrainer:
    """Networks, optimisers and one run's files."""

    def __init__(
        self, options: TrainOptions, generator: nn.Module, judges: Judges, folder: Path, world: World
    ) -> None:
        """generator: with a `config` and what FewShotGenerator does. folder: of the run's checkpoints.

        With --continue_train, takes up what is there. Raises UserError for a batch that the processes can't share,
        checkpoints of other networks, or a folder that can't be written to.
        """
        flags, size = options.optimiser, options.data.batchSize
        if size % world.size:
            raise UserError(
                f"--batchSize {size}: {world.size} processes share it; give a multiple of {world.size}"
            )
        self.options, self.world, self.path = options, world, folder
        for module in (generator, judges.critics, judges.perceptual):
            if module is not None:
                module.to(world.device, memory_format=torch.channels_last)
        self.state = TrainingState(
            generator,
            judges.critics,
            AveragedWeights(generator, flags.ema),
            build_optimisers(generator, judges.critics, flags),
            StepGuard(flags.max_bad_steps),
        )
        if options.schedule.continue_train:
            resume(folder, self.state, options, generator.config)
        if not world.agree(self.state.position.step):
            raise UserError(f"--continue_train: the processes don't see the same {folder}; share that folder")
        self.files = RunFolder(folder, options, generator.config) if world.is_first else None
        idle = generator.config.temporal  # before its stage, what is for it has no part in a step
        step = GeneratorStep(generator, judges, options.loss, flags.compile)
        self.generator_step = world.wrap(step, idle)
        self.critics_step = world.wrap(DiscriminatorStep(judges.critics, options.loss), idle)
        half = flags.amp == "on" or (flags.amp == "auto" and world.device.type == "cuda")
        self.autocast = partial(torch.autocast, world.device.type, torch.bfloat16, enabled=half)
        self.stop = StopRequest()

    def fit(self, dataset: FaceSamples, on_step: OnStep | None = None) -> None:
        """Train from where the state stands to the last epoch, saving on the way.

        on_step is called after every step with the position after it and the result. Raises UserError where there
        is nothing to train on, too many steps in a row had to be skipped, or the last state could not be saved;
        KeyboardInterrupt after Ctrl-C or SIGTERM, once all is saved.
        """
        last, n, at = n_epochs(self.options), len(dataset), self.state.position
        if not n:
            raise UserError("--dataroot: there is no sample to train on; check the folder")
        if at.epoch > last:
            remark(f"all {last} epochs are done; give a larger --niter to go on")
            return
        n_done = (at.epoch - 1) * n + at.samples
        log, loader = TrainingLog(self.path, last * n, at, n_done, self.world.is_first), self._loader(dataset)
        try:
            with self.stop:
                for epoch in range(at.epoch, last + 1):
                    self._epoch(loader, plan_epoch(self.options, epoch), log, on_step)
        finally:
            log.close()
        self._check_saved()

    def step(self, batch: FaceBatch, plan: EpochPlan) -> StepResult:
        """One step on this process's part of a batch: the generator's half, then the critics'.

        Raises UserError where this was one bad step in a row too many.
        """
        number, critics = self.state.position.step, self.state.critics
        # Every step has its own seed, so that going on needs no random state, on whatever devices.
        torch.manual_seed(self.options.schedule.seed * 1_000_003 + number)
        shared = torch.rand(self.options.data.batchSize) < TRUE_PREVIOUS
        true_previous = shared[part_of(len(shared), self.world.rank, self.world.size)].to(self.world.device)
        critics.requires_grad_(False)  # the generator's gradient passes through them only
        with self.autocast():
            terms, made = self.generator_step(batch, true_previous, plan.adversarial)
        losses, fault, stop = self._descend("generator", self.state.generator, terms)
        critics.requires_grad_(True)
        if not fault:
            self.state.average.update(self.state.generator)
            if plan.adversarial:
                # The frames that the generator's half made serve here too, though its weights are one step on by
                # now: making them again, as the public code does, would cost half as much again.
                with self.autocast():
                    terms = self.critics_step(made, batch)
                their, fault, _ = self._descend("critics", critics, terms)
                losses |= their
        self.state.guard.count(fault)
        return StepResult(losses, made, fault, stop)

    def _descend(
        self, who: str, network: nn.Module, terms: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], str, bool]:
        """Go down the gradient unless something is wrong: losses, what is wrong, and whether to stop."""
        if not terms:
            raise UserError(
                "--lambda_*: no loss is left for the generator; give one of them a weight above 0"
            )
        optimiser, limit = self.state.optimisers[who], self.options.optimiser.clip_grad or math.inf
        optimiser.zero_grad()
        sum(term.float() for term in terms.values()).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), limit)
        told = [*terms.values(), norm, norm.new_tensor(self.stop.made)]
        # All processes get the same means, NaN included, so they decide alike.
        *values, norm, stop = self.world.mean(torch.stack([x.detach().float() for x in told])).tolist()
        losses = dict(zip(terms, values, strict=True))
        fault = self.state.guard.fault(who, losses, norm)
        if not fault:
            optimiser.step()
        return losses, fault, stop > 0

    def _epoch(self, loader: DataLoader, plan: EpochPlan, log: TrainingLog, on_step: OnStep | None) -> None:
        run, size = self.options.schedule, self.options.data.batchSize
        for who, optimiser in self.state.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = base_rates(self.options.optimiser)[who] * plan.rate
        n_samples = self._go_to(loader, plan)
        for batch in loader:
            batch = batch.to(self.world.device)
            result, before = self.step(batch, plan), self.state.position
            n_new = min(size, n_samples - before.samples)  # the last batch is filled up with others
            at = replace(before, samples=before.samples + n_new, step=before.step + 1)
            self.state.position = at
            log.step(at, result.losses, n_new, self.state.guard.n_skipped)
            if on_step:
                on_step(at, result)
            if at.step % run.display_freq == 0:
                log.sample(at, batch, result.made)
            if result.stop or (at.step % run.save_latest_freq == 0 and at.samples < n_samples):
                self._save()
            if result.stop:
                self._check_saved()
                raise KeyboardInterrupt
        self.state.position = self.state.position.next_epoch()
        self._save(plan.epoch)

    def _loader(self, dataset: FaceSamples) -> DataLoader:
        """One for all epochs: its readers keep what they have made of the clips."""
        data, world = self.options.data, self.world
        seed, shuffle = self.options.schedule.seed, not data.serial_batches
        return DataLoader(
            PlacedSamples(dataset),
            batch_sampler=EpochBatches(data.batchSize, seed, shuffle, world.rank, world.size),
            collate_fn=FaceBatch.stack,
            num_workers=data.nThreads,
            persistent_workers=data.nThreads > 0,
            worker_init_fn=stand_apart,
            pin_memory=world.device.type == "cuda",
        )

    def _go_to(self, loader: DataLoader, plan: EpochPlan) -> int:
        """Make the loader's next pass this epoch's, from where the state stands; the number of the epoch's samples.

        Slices grow no longer than the clips are.
        """
        dataset, n_frames = loader.dataset.dataset, plan.n_frames
        while n_frames > self.options.generator.n_frames_G:
            try:
                dataset.set_epoch(plan.epoch, n_frames)
                break
            except UserError:
                n_frames //= 2
        else:
            dataset.set_epoch(plan.epoch, n_frames)
        order = getattr(dataset, "order", lambda: None)()  # shards are streamed in an order of their own
        done = self.state.position.samples
        loader.batch_sampler.go_to(plan.epoch, n_frames, len(dataset), done, order)
        return len(dataset)

    def _save(self, epoch_done: int | None = None) -> None:
        if self.files:
            keep = epoch_done is not None and epoch_done % self.options.schedule.save_epoch_freq == 0
            self.files.save(self.state, epoch_done if keep else None)

    def _check_saved(self) -> None:
        if self.files and self.files.last_error:
            raise self.files.last_error


def base_rates(flags: OptimiserFlags) -> dict[str, float]:
    """Learning rates before any schedule; unless --no_TTUR, the critics' is four times the generator's."""
    ratio = 1.0 if flags.no_TTUR else 2.0
    return {"generator": flags.lr / ratio, "critics": flags.lr * ratio}


def build_optimisers(
    generator: nn.Module, critics: nn.Module, flags: OptimiserFlags
) -> dict[str, torch.optim.Optimizer]:
    """Adam for both sides (parity notes, section 6)."""
    betas = (0.5, 0.999) if flags.no_TTUR else (0.0, 0.999)
    networks = {"generator": generator, "critics": critics}
    return {
        who: torch.optim.Adam(networks[who].parameters(), rate, betas)
        for who, rate in base_rates(flags).items()
    }
