"""Rate-distortion optimal quantization: error feedback under the curvature of the outputs, at what each index costs in the file."""

from bqjax.methods.rate_distortion.block_method import BlockRateDistortion, BlockRateDistortionInfo
from bqjax.methods.rate_distortion.block_solver import BlockConfig, PreparedBlocks, block_quant_rd, prepare_blocks
from bqjax.methods.rate_distortion.distortion import measured_distortion, predicted_distortion
from bqjax.methods.rate_distortion.method import RateDistortion, RateDistortionInfo
from bqjax.methods.rate_distortion.search import lambda_for_bytes
from bqjax.methods.rate_distortion.solver import Prepared, SolverConfig, bin_and_quant_rd, prepare

__all__ = [
    "BlockConfig",
    "BlockRateDistortion",
    "BlockRateDistortionInfo",
    "Prepared",
    "PreparedBlocks",
    "RateDistortion",
    "RateDistortionInfo",
    "SolverConfig",
    "bin_and_quant_rd",
    "block_quant_rd",
    "lambda_for_bytes",
    "measured_distortion",
    "predicted_distortion",
    "prepare",
    "prepare_blocks",
]
