"""What a training run is: everything that its result depends on, besides the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bqjax.quantizers import QuantizerConfig
from train.image.transfer import Pruning
from train.objective import check_objective

__all__ = ["GWKLayers", "GWKPhase", "TrainConfig"]

Model = Literal["digits", "resnet20", "resnet56", "mobilenet_v2", "mnist_5x5", "mnist_large", "mnist_small"]
Dataset = Literal["digits", "cifar10", "imagenet2012", "mnist", "fashion_mnist", "digits28"]


@dataclass(frozen=True, kw_only=True)
class GWKLayers:
    """Blocks of some layers of a GWK phase.

    Attributes:
      pattern: of the layers' names (``layer3/*``).
      cv, pw, bits: as in :class:`GWKPhase`.
      group: layers of one group share a codebook.
      index_bits: what a layer's mean index shall take, entropy-coded, in bits; None leaves that to the phase's ``rate``. Schedule
        "step".
    """

    pattern: str
    cv: int = 6
    pw: int = 4
    bits: int = 5
    group: str | None = None
    index_bits: float | None = None

    def __post_init__(self) -> None:
        if self.index_bits is not None and not 0 < self.index_bits <= self.bits:
            raise ValueError(f"index_bits of {self.pattern!r} must be above 0 and at most {self.bits}, got {self.index_bits}")


@dataclass(frozen=True, kw_only=True)
class GWKPhase:
    """Training with clustered weights; the paper writes ``cv/pw/bits``, as in 6/4/5.

    Attributes:
      epochs: of the phase.
      schedule: ``"epoch"`` replaces weights by their reconstruction after every epoch (the paper); ``"step"`` (ours, for
        short training) runs on the reconstruction in every step, with gradients straight through to latent weights.
      start: ``"kmeans"``, or ``"solver"`` (ours): blocks chosen under the curvature of the float network's outputs, and codebooks
        that train beside latent weights (:mod:`train.image.solved`); schedule "step". ``decay``, ``weighting`` and ``rate`` are
        then not looked at, and ``epochs=0`` with ``tune_epochs`` trains codebooks alone. ``"file"``: the same from the network of
        ``file``.
      file: ``model.bq.safetensors`` of another run of these layers, from which all parameters are taken; start "file".
      lmbda: of a bit at the start, in the units of half the squared change of the outputs of an example.
      bits_per_weight: what indices shall take on the mean over all clustered weights, entropy-coded; lmbda then follows. None keeps
        lmbda. Starts "solver" and "file".
      refresh_steps: blocks are chosen anew after every so many steps; starts "solver" and "file".
      codebook_bits: of a number of a codebook, 1 to 8, rounded over each codebook's own range in training and in the file; starts
        "solver" and "file". None: as they are in training, and in the file the 8 bits of the layers' quantizers.
      cv, pw, bits, weighting: see :class:`bqjax.methods.gwk.config.GWKConfig`. ``"fisher"`` is ``"coordinate"`` with squared
        gradients, those of batches and not of single examples.
      decay: how slowly codebooks follow the weights; schedule "step".
      freeze: share of the phase after which each block keeps its codebook entry; schedule "step".
      rate: what a bit of entropy-coded indices weighs in the choice of entries, see :func:`bqjax.methods.gwk.assignment.assign`;
        schedule "step".
      layers: blocks of layers that are not clustered as above; the first whose pattern matches counts.
      equalize: the kernels' output channels all get one root mean square for each codebook, and the BatchNorm behind them takes
        that back (:func:`bqjax.adapters.flax.apply.equalize_channels`): blocks of all channels then fit the same codebook.
      tune_epochs: epochs of a last phase (ours) in which indices are fixed and codebooks are trained by gradients, with the rest
        of the network.
      tune_learning_rate: Adam's in that phase, at the start.

    Raises:
      ValueError: a number is out of range, or the schedule is unknown.
    """

    epochs: int = 0
    schedule: Literal["epoch", "step"] = "epoch"
    start: Literal["kmeans", "solver", "file"] = "kmeans"
    file: str | None = None
    lmbda: float = 0.0
    bits_per_weight: float | None = None
    refresh_steps: int = 1
    codebook_bits: int | None = None
    cv: int = 6
    pw: int = 4
    bits: int = 5
    weighting: Literal["block", "coordinate", "fisher", "none"] = "block"
    decay: float = 0.95
    freeze: float = 0.7
    rate: float = 0.0
    layers: tuple[GWKLayers, ...] = ()
    equalize: bool = False
    tune_epochs: int = 0
    tune_learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        alone = self.start != "kmeans" and self.tune_epochs > 0
        if self.epochs < (0 if alone else 1):
            raise ValueError(f"a GWK phase needs epochs, got {self.epochs}; None leaves the phase out")
        if self.schedule not in ("epoch", "step"):
            raise ValueError(f"schedule must be epoch or step, got {self.schedule!r}")
        if self.weighting not in ("block", "coordinate", "fisher", "none"):
            raise ValueError(f"weighting must be block, coordinate, fisher or none, got {self.weighting!r}")
        if not 0 <= self.decay < 1 or not 0 <= self.freeze <= 1:
            raise ValueError(f"decay must be from 0 to below 1 and freeze from 0 to 1, got {self.decay} and {self.freeze}")
        if self.tune_epochs < 0:
            raise ValueError(f"tune_epochs must be at least 0, got {self.tune_epochs}")
        for field in ("rate", "tune_learning_rate"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) >= 0):
                raise ValueError(f"{field} must be finite and at least 0, got {getattr(self, field)}")
        if self.rate and self.schedule != "step":
            raise ValueError('a rate needs schedule "step"')
        self._check_start()
        if self.schedule != "step" and any(each.index_bits is not None for each in self.layers):
            raise ValueError('index_bits of layers need schedule "step"')

    def _check_start(self) -> None:
        if self.start not in ("kmeans", "solver", "file"):
            raise ValueError(f"start must be kmeans, solver or file, got {self.start!r}")
        if (self.start == "file") != (self.file is not None):
            raise ValueError(f'start "file" and the name of a file go together, got start={self.start!r} and file={self.file!r}')
        if self.start == "kmeans":
            if self.lmbda or self.bits_per_weight is not None or self.refresh_steps != 1 or self.codebook_bits is not None:
                raise ValueError(
                    'lmbda, bits_per_weight, refresh_steps and codebook_bits need start "solver" or "file"; k-means has '
                    "rate and index_bits"
                )
            return
        if self.schedule != "step":
            raise ValueError(f'start "{self.start}" needs schedule "step"')
        if not (self.lmbda > 0 and math.isfinite(self.lmbda)):
            raise ValueError(f'start "{self.start}" needs a positive and finite lmbda, got {self.lmbda}')
        if self.bits_per_weight is not None and not self.bits_per_weight > 0:
            raise ValueError(f"bits_per_weight must be positive, got {self.bits_per_weight}")
        if self.codebook_bits is not None and not 1 <= self.codebook_bits <= 8:
            raise ValueError(f"codebook_bits must be from 1 to 8, got {self.codebook_bits}")
        if self.refresh_steps < 1:
            raise ValueError(f"refresh_steps must be at least 1, got {self.refresh_steps}")
        if self.rate or any(each.index_bits is not None for each in self.layers):
            raise ValueError(
                f'start "{self.start}" has one lmbda for all layers: set bits_per_weight in place of rate and index_bits'
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run of ``python -m train``: a float phase, a quantized one and a clustered one, each from the last one's result.

    Attributes:
      model: the network.
      dataset: what it is trained on.
      weights: a safetensors file in the data folder to start from, in PyTorch's names; None starts from random weights.
      initial: or a file of another run's float network, its ``model.safetensors``.
      anew: patterns of leaves that are not taken from ``initial`` but drawn anew: the head of another task.
      freeze: patterns of leaves that do not train (``conv*``), in any phase; BatchNorm among them keeps its statistics.
      pruning: weights that become zero in the float phase; None prunes nothing.
      float_epochs: epochs of the float phase.
      epochs: epochs of the quantized phase.
      quantizer: of the layers in the quantized phase; None allows no such phase.
      hessian_epochs: after every so many epochs of a quantized phase, the gradient scale of EWGS is measured anew for each layer
        (:func:`bqjax.adapters.flax.apply.hessian_deltas`); 0 keeps ``quantizer.delta``.
      gwk: the clustered phase, of the layers that are quantized; None leaves it out.
      keep_float: patterns of layers that stay as they are (the first and the last, as is usual).
      train_examples: how many of the training examples to use, drawn by the seed; None uses all.
      test_examples: how many of the test examples to report on, always the same; None uses all.
      crop_padding: pixels that training images are moved by at most in each direction; None is what is usual for the data set
        (4 for CIFAR-10).
      cutmix: probability that a training image has a rectangle of another, and its part of that one's label
        (:func:`train.data.augment.cutmix`); with distillation, the teacher says what a student shall make of such images.
      batch_size: examples a step, over all devices.
      statistics_examples: over how many training examples, in whole batches and at most all, BatchNorm's statistics are taken
        anew after a phase (:func:`train.image.stored.settled`); 0 keeps the running ones.
      learning_rate: Adam's, at the start; it falls to 0 along a cosine within each phase.
      quantizer_learning_rate: that of intervals and output scales.
      weight_decay: added to gradients as ``weight_decay * w``, quantizer parameters excepted.
      distillation: share of the loss that compares with a teacher instead of the labels; 0 is none. The teacher of quantized
        phases is the float network (of the end of the float phase, or ``weights``).
      teacher: a file of another run's float network, which then teaches in all phases, the float one too.
      teacher_weights: or a safetensors file in the data folder, in PyTorch's names, of resnet20 or resnet56: whichever it holds.
      teacher_model: what network the file of ``teacher`` holds; None is ``model``.
      temperature: of both networks' outputs in that comparison.
      vector_bits: of biases and of BatchNorm, folded, in the file: 8 or 16, with quantizers in float16; None leaves all in float32.
      seed: every draw follows from it and the step, the order of the data from it and the epoch.

    Raises:
      ValueError: a number is out of range, or fields do not fit.
    """

    model: Model = "resnet20"
    dataset: Dataset = "cifar10"
    weights: str | None = None
    initial: str | None = None
    anew: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    pruning: Pruning | None = None
    float_epochs: int = 0
    epochs: int = 0
    quantizer: QuantizerConfig | None = None
    hessian_epochs: int = 0
    gwk: GWKPhase | None = None
    keep_float: tuple[str, ...] = ("conv1", "linear")
    train_examples: int | None = None
    test_examples: int | None = None
    crop_padding: int | None = None
    cutmix: float = 0.0
    batch_size: int = 256
    statistics_examples: int = 0
    learning_rate: float = 1e-3
    quantizer_learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    distillation: float = 0.0
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_model: Model | None = None
    temperature: float = 4.0
    vector_bits: int | None = None
    seed: int = 0

    @property
    def codebook_bits(self) -> int | None:
        """Of a number of a codebook, see :class:`GWKPhase`; None without such a phase."""
        return self.gwk.codebook_bits if self.gwk else None

    def __post_init__(self) -> None:
        if self.float_epochs < 0 or self.epochs < 0 or not (self.float_epochs or self.epochs or self.gwk):
            raise ValueError(f"there must be epochs: float_epochs={self.float_epochs}, epochs={self.epochs}")
        if (self.epochs or self.gwk) and self.quantizer is None:
            raise ValueError("quantized epochs and GWK need a quantizer; epochs without one are float_epochs")
        if self.hessian_epochs < 0:
            raise ValueError(f"hessian_epochs must be at least 0 (0 keeps the quantizer's delta), got {self.hessian_epochs}")
        if self.hessian_epochs and (
            self.quantizer is None or self.quantizer.rounding != "ewgs" or self.quantizer.weight_bits is None
        ):
            raise ValueError(f"hessian_epochs={self.hessian_epochs} needs a quantizer of weights with rounding ewgs; leave it 0")
        for field in ("train_examples", "test_examples"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ValueError(f"crop_padding must be at least 0, got {self.crop_padding}; None is what is usual for the data set")
        if self.statistics_examples and self.statistics_examples < self.batch_size:
            raise ValueError(
                f"statistics_examples must be 0 or at least a batch of {self.batch_size}, got {self.statistics_examples}"
            )
        if not 0 <= self.cutmix <= 1:
            raise ValueError(f"cutmix is a probability from 0 to 1, got {self.cutmix}")
        check_objective(self)
        taught = self.teacher or self.teacher_weights
        if self.distillation and not (self.weights or self.initial or taught or self.float_epochs):
            raise ValueError("distillation needs a float network: give weights or float_epochs")
        if self.teacher and self.teacher_weights:
            raise ValueError("teacher and teacher_weights are two networks: give one of them")
        if taught and not self.distillation:
            raise ValueError("a teacher needs distillation, the share of the loss that compares with it")
        if self.teacher_model and not self.teacher:
            raise ValueError("teacher_model says what network the file of teacher holds: name the file, too")
        if self.weights and self.initial:
            raise ValueError("weights and initial are two starts: give one of them")
        if self.vector_bits not in (None, 8, 16):
            raise ValueError(f"vector_bits must be 8, 16 or None, got {self.vector_bits}")
        if self.pruning is not None and (not self.float_epochs or self.epochs or self.gwk):
            raise ValueError("pruning is for the float phase, and quantized phases would not keep its zeros: set float_epochs only")
        if self.dataset not in fitting(self.model):
            raise ValueError(f"model {self.model!r} does not fit data set {self.dataset!r}")


def fitting(model: str) -> tuple[str, ...]:
    """The data sets whose images a network takes."""
    if model.startswith("mnist"):
        return "mnist", "fashion_mnist", "digits28"
    return {"digits": ("digits",), "mobilenet_v2": ("cifar10", "imagenet2012")}.get(model, ("cifar10",))
