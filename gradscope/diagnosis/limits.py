"""Every limit that a verdict rests on, with where it comes from.

None was fitted to a network: each is a published constant, a theoretical factor over a stated
depth, or a property of floating point. Factors are in decades (log10), since what adds up over
depth is the logarithm.
"""

from __future__ import annotations

import math

VANISHING = 3.0
"""Decades of decay towards the input that matter: first/last < 1e-3, AUTOTRAINER's rule for
vanishing gradients (Zhang et al. 2021). PyTorch's default initialisation, sqrt(1/6) per ReLU layer,
takes eight layers for it, more than the small networks that are trained with it every day."""

EXPLODING = 1.5
"""Decades of growth that matter in a plain chain, where it is exponential in depth: a factor of 32,
between the e^3 that bounds the trainable depth (six depth scales, Schoenholz et al. 1611.01232) and
AUTOTRAINER's 70 for exploding gradients."""

EXPLODING_NORMALISED = 6.0
"""Decades of growth that matter where most blocks hold a normalisation. Beside a skip, the factor
of block k of a stage is sqrt(1 + 1/k) (De & Smith 2002.10444): it adds up to a power of the depth,
not to an exponential, and published networks that train well have it; with two normalisations per
block, a thousand blocks make 1000^2. Without skips, `NORM_FACTOR` tells what depth makes."""

NORM_FACTOR = 0.5 * math.log10(math.pi / (math.pi - 1))
"""Decades per layer that ReLU and batch norm without a skip add towards the input, whatever the
initialisation: 0.083 (Yang et al. 1902.08129). `EXPLODING` is reached with 19 layers in a row."""

MILD = 1.0
"""Decades from which a certain trend is mentioned although it does not matter yet."""

ROBUST_SHARE = 2 / 3
"""Share of a limit that the robust centre must make over the stretch, so that a handful of odd
blocks (a pooling, a head) cannot make a trend."""

ODD_BLOCK = 1.0
"""Decades by which a single block must stand out, forward and backward alike, to be mis-scaled:
weights that are off by ten make activations off by ten."""

ODD_LAYER = 2.0
"""Decades by which gradient/weight of one layer must stand out from the layers of its type around
it. Scaling a weight by s moves the ratio by s^2, so that this is a mis-scaling by ten, too."""

ODD_WEIGHT = 0.9
"""Decades by which the gain of a layer's weight, std * sqrt(fan_in), must stand out from the median
of the network for its oddity to lie in the weights: a factor of eight, four times what separates
PyTorch's default from He's. Without it the oddity is how the network is built, as in a gate."""

ODD_SPREAD = 6.0
"""Robust standard deviations (1.4826 MAD) by which an odd block must stand out as well."""

DEAD_SHARE = 0.7
"""Share of units that never fire from which a layer is dead: AUTOTRAINER's limit for dying ReLU."""

WHOLE = 0.99
"""Share of dead units from which nothing passes a layer, so that its output is the same for all."""

DEAD_CHANCE = 0.5
"""Share of ReLU units that are off by chance when all examples look alike, as they come to do in a
deep network at initialisation (1611.01232: correlations converge)."""

SATURATED_SHARE = 0.5
"""Share of outputs at a bound from which a layer is saturated."""

UPDATE_TOO_LARGE = 1.0
"""Update/weight from which steps are too large: the update exceeds the weight (You et al.,
1708.03888)."""

UPDATE_LARGE = 0.1
"""Update/weight from which it is worth a warning: a hundred times the usual 1e-3."""

UPDATE_TOO_SMALL = 3e-6
"""Update/weight below which 100,000 steps, all in one direction, change the weights by less than a
third; float32 loses updates from 6e-8 on."""

UPDATE_SMALL = 1e-5
"""Update/weight below which it is worth a warning: a hundredth of the usual 1e-3."""

MIN_UPDATES = 3
"""Recorded steps that a judgement on update sizes needs; a warm-up begins with zero."""

WARM_UP = 1.5
"""Growth of the updates over the recorded steps from which small ones may be a warm-up."""

UPDATE_LOST = 1e-7
"""Update/weight below which float32 rounds updates away (2^-24 = 6e-8), warm-up or not."""

UPDATE_RATTLES = 0.03
"""Update/weight from which a loss that is not below where it began is laid to the steps: thirty
times the usual 1e-3."""

UPDATE_CREEPING = 1e-4
"""Update/weight below which a loss that does not fall is laid to the steps: a tenth of the usual
1e-3."""

UPDATE_CLIPPED = 3e-4
"""Update/weight below which clipping to `CLIPPED` is what holds the weights: a third of the usual
1e-3, which the update would exceed ten times over without it."""

CLIPPED = 1 / 30
"""Share of the gradient norm that clipping leaves at nearly every step from which it is no longer
outliers that are clipped: a decade and a half, as for `EXPLODING`."""

SHUT = 1e-3
"""Size (rms) of a scale up to which it holds back what is behind it: `VANISHING`, by one factor.
LayerScale starts at 1e-6 to 1e-4, or for shallow networks at 0.1, which holds nothing back."""

OPENING = 1.1
"""Growth over the recorded steps from which such a scale is still on its way."""

LOST_SHARE = 0.5
"""Share of the elements with a gradient that a step leaves bit for bit as they are from which
updates are lost in rounding: most of them."""

NORMAL_HALF = 2.0**-14
"""Smallest float16 number of full precision; below it each halving loses a bit, and below 2^-25
all are lost."""

LEAST_HALF = 2.0**-24
"""Smallest positive float16 number; half of it rounds to zero."""

UNDERFLOW_SHARE = 0.25
"""Share of zeros among such small gradients from which they are falling below float16."""

RATE_FALLEN = 1e-3
"""Learning rate over its highest at or below which, for a fifth of the run, it fell too early:
three drops by ten, which published schedules of steps reach in their last tenth."""

RATE_GONE = 1e-4
"""The same, for a tenth of the run: a cosine is there for the last 0.6 %, a line for the last
0.01 %."""

MIN_SKIPPED = 20
"""Steps that a GradScaler must have skipped, at least half of all, to be called a fault: it begins
at 2^16 and halves the scale each time, so that 16 bring it to 1, where nothing is scaled."""

DECAY_PER_STEP = 0.01
"""Learning rate times weight decay from which decay is fast: it halves the weights in 70 steps. The
usual is 5e-5 (SGD: 0.1 * 5e-4) to 1e-4 (AdamW: 1e-3 * 0.1)."""

MIN_LOSSES = 20
"""Steps with a known loss that a judgement on its fall needs."""

FLAT_LOSS = 0.02
"""Share of the loss by which it must have fallen over them to be falling."""


CHANCE = 1e-3
"""Probability below which what stayed away did not stay away by chance."""

STRETCH_SHARE = 1 / 4
"""Share of the recorded steps, the last ones, that is judged on its own beside the whole."""

MIN_STRETCH = 8
"""Recorded steps that a stretch must have; runs of fewer than two such are judged as a whole."""


BEYOND_RANGE = 0.25
"""Standard deviations of the targets by which one must lie beyond what the output can give: less is
noise at the bound."""

BEYOND_ON_AVERAGE = 0.1
"""Share of its range by which targets must lie beyond what the output can give, on average over
all of them, where only the value of an absolute error and the signs of its gradient are known."""

MIN_LABELS = 16
"""Examples in a batch of three or more classes of which it is no chance that all have one label."""

RUN_AWAY = 10.0
"""Factor by which a loss below zero, and the outputs with it, must have grown to have no bound."""

HARDLY_LEARNED = 0.9
"""Loss over that of a constant prediction above which next to nothing was learned: where an output
that does not fit the loss, or steps that are too small, explain it."""

LONG_RUN = 200
"""Steps after which a loss at chance is an error: a network that learns anything is below it, if
only by the frequencies of its classes; before, it may still be on its way."""

INPUT_LARGE = 30.0
"""Size (rms) of inputs from which they are not standardised, where 1 is usual: pixels to 255 have
about 150, pixels standardised by the statistics of a data set at most 2.7."""

INPUT_SMALL = 0.01
"""Size (rms) of inputs from which the biases of PyTorch's default initialisation, up to
1/sqrt(fan_in), drown them: pixels divided by 255 twice have 0.002."""

LOSS_AT_START = 3.0
"""Loss at the first step, over that of a constant prediction, from which inputs that are too large
have bitten: logits and outputs of a usual initialisation give 1 to 2."""

SURE = 0.5
"""Loss over that of a constant prediction below which a network has learned something, so that its
output may lie at a bound."""

LOGITS_LARGE = 10.0
"""Size (rms) of logits from which a softmax is sure: exp(-10) = 5e-5."""

ALIKE = 1e-8
"""Variance / mean square below which numbers are the same to float32 (its rounding squared, with
room for sums)."""

COLLAPSED = 1e-4
"""Variance over the examples / mean square below which outputs are the same: differences of 1 %."""

COLLAPSE = 100.0
"""Factor by which it must have fallen to have collapsed: a decade in what the outputs differ by."""

PEAKED = 0.8
"""Mean largest share of a softmax over `MIN_KEYS` or more from which it is saturated: its
derivative, p (1 - p), is below 0.16 there and falls with what is left."""

PEAKED_MILD = 0.5
"""The same for a warning: scores of unit variance over sixteen keys give 0.2."""

MIN_KEYS = 8
"""Elements of a softmax over which a large share is no chance."""

DROPOUT_LARGE = 0.75
"""Share that a dropout drops from which it is worth a warning: published networks use up to 0.5,
some 0.7."""

DROPOUT_TOO_LARGE = 0.9
"""Share that a dropout drops from which almost nothing is left; usually the share to keep was
meant."""

MIN_LINEAR = 3
"""Layers without an activation between them from which it is no factorisation but an oversight."""

SATURATED_STEPS = 10
"""Recorded steps in each of which a layer is saturated, the first among them, from which it will
not come back by itself."""


def dead_share(units: int) -> float:
    """Share of dead units from which a layer of a given width is dead.

    Args:
        units: number of units of the layer.

    Returns:
        `DEAD_SHARE`, or three standard deviations above chance where that is more, at most 0.99.
    """
    chance = DEAD_CHANCE + 3 * math.sqrt(DEAD_CHANCE * (1 - DEAD_CHANCE) / max(units, 1))
    return min(0.99, max(DEAD_SHARE, chance))
