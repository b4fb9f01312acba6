"""Row-wise products and sums whose bits depend on that row alone.

A matrix product rounds a row differently depending on the number of rows and the row's position.
Removing one unit would then change the others' results in the last bits: their clipping factors,
and through an argmax even a whole count. Here, every row is computed separately, with the same
shapes and from the same memory.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

AT_ONCE = 1024
"""Most rows in float64 at once."""


def row_products(rows_BD: torch.Tensor, weight_KD: torch.Tensor) -> torch.Tensor:
    """float64 (B, K): each row times the weight's rows.

    Args:
        rows_BD: float64, on the CPU.
        weight_KD: float64, on the CPU.
    """
    count, (classes, size) = len(rows_BD), weight_KD.shape
    found_BK = torch.empty((count, classes), dtype=torch.float64)
    weight_KD = weight_KD.contiguous()
    row_D = torch.empty(size, dtype=torch.float64)
    product_K = torch.empty(classes, dtype=torch.float64)
    # NumPy views of the same memory: copying one row with torch takes three times as long.
    rows, found = rows_BD.numpy(), found_BK.numpy()
    row, product = row_D.numpy(), product_K.numpy()
    for at in range(count):
        row[:] = rows[at]
        torch.mv(weight_KD, row_D, out=product_K)
        found[at] = product
    return found_BK


def row_sums(values_BD: torch.Tensor) -> torch.Tensor:
    """float64 (B,): the sum of each row, on the CPU.

    NumPy sums the last axis row by row, pairwise in a way that depends only on its length; torch
    may split a few long rows between threads.
    """
    values = np.ascontiguousarray(values_BD.numpy(), dtype=np.float64)
    return torch.from_numpy(np.add.reduce(values, axis=1))


def each_row(
    function: Callable[[torch.Tensor], torch.Tensor], rows_ND: torch.Tensor, width: int
) -> NDArray[np.float64]:
    """float64 (N, P): a function (1, D) -> (1, P) applied to every row separately.

    Args:
        function: Computed on the rows' device.
        rows_ND: Any dtype and device.
        width: P.
    """
    found_NP = np.empty((len(rows_ND), width))
    row_1D = torch.empty_like(rows_ND[:1]) if len(rows_ND) else rows_ND
    for at in range(len(rows_ND)):
        row_1D.copy_(rows_ND[at : at + 1])
        found_NP[at] = function(row_1D)[0].double().cpu().numpy()
    return found_NP
