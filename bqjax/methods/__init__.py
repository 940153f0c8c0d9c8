"""Compression methods: one room each, and in each pure functions, their settings, and the object that runs them on a task."""

from bqjax.methods.base import Compressed, Method, Uncompressed
from bqjax.methods.baselines.deep_compression import DeepCompressionConfig
from bqjax.methods.baselines.diba import DiBAConfig
from bqjax.methods.baselines.dkm import DKMConfig
from bqjax.methods.baselines.even import EvenConfig
from bqjax.methods.baselines.methods import (
    PTQ,
    Binary,
    DeepCompression,
    DiBA,
    EvenLevels,
    KMeans,
    ProductQuantization,
    ResidualQuantization,
)
from bqjax.methods.baselines.product import ProductConfig
from bqjax.methods.baselines.ptq import PTQConfig
from bqjax.methods.baselines.residual import ResidualConfig
from bqjax.methods.bins.config import SearchConfig
from bqjax.methods.bins.gaussian import BinConfig
from bqjax.methods.bins.method import BinAndQuant, GaussianBins
from bqjax.methods.bins.rate import RateConfig
from bqjax.methods.budget.method import WithinBudget
from bqjax.methods.budget.plan import Blocks, BudgetConfig, Layer, Planned, Values
from bqjax.methods.gwk.config import GWKConfig
from bqjax.methods.gwk.method import GWK
from bqjax.methods.rate_distortion.block_method import BlockRateDistortion
from bqjax.methods.rate_distortion.block_solver import BlockConfig
from bqjax.methods.rate_distortion.fixed_rate import ErrorFeedback, WeightedKMeans
from bqjax.methods.rate_distortion.method import RateDistortion
from bqjax.methods.rate_distortion.solver import SolverConfig

__all__ = [
    "GWK",
    "PTQ",
    "BinAndQuant",
    "BinConfig",
    "Binary",
    "BlockConfig",
    "BlockRateDistortion",
    "Blocks",
    "BudgetConfig",
    "Compressed",
    "DKMConfig",
    "DeepCompression",
    "DeepCompressionConfig",
    "DiBA",
    "DiBAConfig",
    "ErrorFeedback",
    "EvenConfig",
    "EvenLevels",
    "GWKConfig",
    "GaussianBins",
    "KMeans",
    "Layer",
    "Method",
    "PTQConfig",
    "Planned",
    "ProductConfig",
    "ProductQuantization",
    "RateConfig",
    "RateDistortion",
    "ResidualConfig",
    "ResidualQuantization",
    "SearchConfig",
    "SolverConfig",
    "Uncompressed",
    "Values",
    "WeightedKMeans",
    "WithinBudget",
]
