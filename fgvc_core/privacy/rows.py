"""What is computed of one row, in bits that depend on that row alone.

A product of matrices rounds a row in one way or another depending on how many rows stand beside
it and where it stands among them. One unit taken out would then move what is computed of the
others by their last bits: their clipping factors, and where an argmax hangs on it a whole count.
Here each row is computed by itself, with the same shapes and from the same place in memory.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

AT_ONCE = 1024
"""Most rows that are held in float64 at once."""


def row_products(rows_BD: torch.Tensor, weight_KD: torch.Tensor) -> torch.Tensor:
    """float64 (B, K): each row times the weight's rows, on the CPU.

    Args:
        rows_BD: float64, on the CPU.
        weight_KD: The same.
    """
    count, (classes, size) = len(rows_BD), weight_KD.shape
    found_BK = torch.empty((count, classes), dtype=torch.float64)
    weight_KD = weight_KD.contiguous()
    row_D = torch.empty(size, dtype=torch.float64)
    product_K = torch.empty(classes, dtype=torch.float64)
    # NumPy's views of the same memory: torch takes three times as long to copy one row.
    rows, found = rows_BD.numpy(), found_BK.numpy()
    row, product = row_D.numpy(), product_K.numpy()
    for at in range(count):
        row[:] = rows[at]
        torch.mv(weight_KD, row_D, out=product_K)
        found[at] = product
    return found_BK


def row_sums(values_BD: torch.Tensor) -> torch.Tensor:
    """float64 (B,): the sum of each row, on the CPU.

    NumPy adds up the last axis row by row, in pairs that depend on its length alone; torch may
    share a few long rows out between threads.
    """
    values = np.ascontiguousarray(values_BD.numpy(), dtype=np.float64)
    return torch.from_numpy(np.add.reduce(values, axis=1))


def each_row(
    function: Callable[[torch.Tensor], torch.Tensor], rows_ND: torch.Tensor, width: int
) -> NDArray[np.float64]:
    """float64 (N, P): a function (1, D) -> (1, P) of every row by itself.

    Args:
        function: Computed on the device of the rows.
        rows_ND: Any dtype and device.
        width: P.
    """
    found_NP = np.empty((len(rows_ND), width))
    row_1D = torch.empty_like(rows_ND[:1]) if len(rows_ND) else rows_ND
    for at in range(len(rows_ND)):
        row_1D.copy_(rows_ND[at : at + 1])
        found_NP[at] = function(row_1D)[0].double().cpu().numpy()
    return found_NP
