"""What changes from epoch to epoch of image training: learning rate, slice length, which losses take part."""

from __future__ import annotations

from dataclasses import dataclass

from options.scripts import TrainOptions

MAX_FRAMES = 16  # of a temporal slice, unless --n_frames_G itself is more
_TEMPORAL_RATE = 0.1  # of the learning rate, in the temporal stage


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of training, counted from 1."""

    epoch: int
    n_frames: int  # T, successive frames per sample
    rate: float  # factor of the learning rates
    adversarial: bool  # discriminators take part

    @property
    def temporal(self) -> bool:
        """Whether frames are made one after the other."""
        return self.n_frames > 1


def n_epochs(options: TrainOptions) -> int:
    """Epochs in all."""
    return options.schedule.niter + options.optimiser.niter_decay


def plan_epoch(options: TrainOptions, epoch: int) -> EpochPlan:
    """The plan of an epoch, 1 to `n_epochs`.

    The rate is constant for --niter epochs and falls linearly over --niter_decay more. After --niter_single epochs,
    with --n_frames_G of 2 or more, slices have that many frames and double every --niter_step epochs.
    """
    run, decay = options.schedule, options.optimiser.niter_decay
    rate = 1 - max(epoch - run.niter, 0) / (decay + 1)
    n_frames, n_first = 1, options.generator.n_frames_G
    if n_first > 1 and epoch > run.niter_single:
        doublings = (epoch - run.niter_single - 1) // run.niter_step
        n_frames = min(n_first * 2 ** min(doublings, 10), max(MAX_FRAMES, n_first))
        rate *= _TEMPORAL_RATE
    wanted = options.loss.lambda_gan > 0 or (
        options.loss.lambda_feat > 0 and not options.loss.no_ganFeat_loss
    )
    return EpochPlan(epoch, n_frames, rate, wanted and epoch >= options.discriminator.gan_start)
