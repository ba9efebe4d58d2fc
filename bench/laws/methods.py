"""The samplers of the law table: how each is made for its process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.laws.worlds import LENGTH
from unmask import DiscreteProcess, Sampler
from unmask.correctors import Gibbs
from unmask.processes.masked import Masked
from unmask.processes.multi_mask import MultiMask
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.euler import Euler
from unmask.samplers.first_hitting import FirstHitting
from unmask.samplers.maskgit import MaskGIT
from unmask.samplers.path_planning import PathPlanning
from unmask.samplers.planned_denoising import PlannedDenoising
from unmask.samplers.predictor_corrector import PredictorCorrector
from unmask.samplers.rdm import Routed, RoutedTopK
from unmask.samplers.rehash import Rehash
from unmask.samplers.remdm import ReMDM, Window, most, rescale
from unmask.samplers.tau_leaping import TauLeaping
from unmask.samplers.theta_rk2 import ThetaRK2
from unmask.samplers.theta_trapezoidal import ThetaTrapezoidal
from unmask.samplers.uniformisation import Uniformisation
from unmask.samplers.unmask import Unmask, per_step
from unmask.select.dilated import dilated
from unmask.select.entropy import entropy
from unmask.select.entropy_bound import entropy_bound
from unmask.select.left_to_right import left_to_right
from unmask.select.margin import margin
from unmask.select.random import random_order
from unmask.select.threshold import threshold
from unmask.select.top_probability import top_probability

MASKED = Masked(vocab_size=3, mask_id=2)
UNIFORM = Uniform(vocab_size=2)
MANY_MASKS = MultiMask(vocab_size=4, mask_id=2, num_masks=2)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the table.

    Args:
        name: what the line is called.
        family: "masks" or "uniform": its picture.
        process: the noise.
        make: number of steps -> the sampler.
        exact: whether it draws the model's law in the limit of many calls.
        steps: the numbers of steps that make sense.
    """

    name: str
    family: str
    process: DiscreteProcess
    make: Callable[[int], Sampler]
    exact: bool
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)


def entries() -> list[Entry]:
    """All lines."""
    return [*unmasking(), *uniform()]


def unmasking() -> list[Entry]:
    def entry(name: str, make: Callable[[int], Sampler], *, exact: bool, steps: tuple[int, ...] = Entry.steps) -> Entry:
        return Entry(name=name, family="masks", process=MASKED, make=make, exact=exact, steps=steps)

    orders = {
        "random": random_order,
        "left to right": left_to_right,
        "top probability": top_probability(),
        "margin": margin(),
        "entropy": entropy(),
        "dilated": dilated(block_size=LENGTH),
    }
    planned = [
        entry(
            f"planned, {name}",
            lambda n, order=order: Unmask(process=MASKED, order=order, quota=per_step(-(-LENGTH // n))),
            exact=True,
            steps=(1, 2, 4),
        )
        for name, order in orders.items()
    ]
    return [
        entry("ancestral", lambda n: Ancestral(process=MASKED), exact=True),
        entry("first hitting", lambda n: FirstHitting(process=MASKED), exact=True, steps=(4,)),
        entry(
            "first hitting, two at a time", lambda n: FirstHitting(process=MASKED, parallel=2), exact=False, steps=(2,)
        ),
        entry("ReMDM, rescale 0.5", lambda n: ReMDM(process=MASKED, sigma=rescale(0.5)), exact=True),
        entry("ReMDM, most", lambda n: ReMDM(process=MASKED, sigma=most), exact=True),
        entry(
            "ReMDM, loop",
            lambda n: ReMDM(process=MASKED, sigma=rescale(0.5), window=Window()),
            exact=True,
            steps=(8, 16),
        ),
        entry("Euler", lambda n: Euler(process=MASKED), exact=True),
        entry("theta-trapezoidal", lambda n: ThetaTrapezoidal(process=MASKED), exact=True),
        entry(
            "ancestral, Gibbs corrections",
            lambda n: PredictorCorrector(predictor=Ancestral(process=MASKED), corrector=Gibbs(process=MASKED)),
            exact=True,
        ),
        *planned,
        *(
            entry(
                f"threshold {tau}",
                lambda n, tau=tau: Unmask(process=MASKED, order=top_probability(), quota=threshold(tau)),
                exact=False,
                steps=(4,),
            )
            for tau in (0.7, 0.95)
        ),
        *(
            entry(
                f"entropy bound {gamma}",
                lambda n, gamma=gamma: Unmask(process=MASKED, order=entropy(), quota=entropy_bound(gamma)),
                exact=False,
                steps=(4,),
            )
            for gamma in (0.1, 0.5)
        ),
        entry("MaskGIT", lambda n: MaskGIT(process=MASKED), exact=False, steps=(1, 2, 4)),
        entry("path planning, eta 1", lambda n: PathPlanning(process=MASKED), exact=False),
        entry("path planning, eta 0.5", lambda n: PathPlanning(process=MASKED, eta=0.5), exact=False),
        entry("routed, top k", lambda n: RoutedTopK(process=MASKED), exact=False),
        Entry(
            name="rehash, two masks",
            family="masks",
            process=MANY_MASKS,
            make=lambda n: Rehash(process=MANY_MASKS),
            exact=True,
        ),
    ]


def uniform() -> list[Entry]:
    def entry(name: str, make: Callable[[int], Sampler], *, exact: bool) -> Entry:
        return Entry(name=name, family="uniform", process=UNIFORM, make=make, exact=exact)

    return [
        entry("ancestral, uniform noise", lambda n: Ancestral(process=UNIFORM), exact=True),
        entry("Euler, uniform noise", lambda n: Euler(process=UNIFORM), exact=True),
        entry("tau-leaping, uniform noise", lambda n: TauLeaping(process=UNIFORM), exact=True),
        entry("theta-RK-2, uniform noise", lambda n: ThetaRK2(process=UNIFORM), exact=True),
        entry("theta-trapezoidal, uniform noise", lambda n: ThetaTrapezoidal(process=UNIFORM), exact=True),
        entry("uniformisation, uniform noise", lambda n: Uniformisation(process=UNIFORM), exact=True),
        entry(
            "ancestral, Gibbs corrections, uniform noise",
            lambda n: PredictorCorrector(predictor=Ancestral(process=UNIFORM), corrector=Gibbs(process=UNIFORM)),
            exact=True,
        ),
        entry(
            "planned denoising, on the grid", lambda n: PlannedDenoising(process=UNIFORM, adaptive=False), exact=True
        ),
        entry("planned denoising, adaptive", lambda n: PlannedDenoising(process=UNIFORM), exact=False),
        entry("routed, uniform noise", lambda n: Routed(process=UNIFORM), exact=True),
        entry("routed, top k, uniform noise", lambda n: RoutedTopK(process=UNIFORM), exact=False),
    ]
