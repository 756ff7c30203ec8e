"""Products by either library are the same to rounding, whatever lies how in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer import matrix_product
from trainer.matrix_product import product

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda matrix: matrix.contiguous(),
    "columns": lambda matrix: matrix.T.contiguous().T,
    "some rows of more": lambda matrix: torch.cat([matrix, matrix])[: len(matrix)],
    "some columns of more": lambda matrix: torch.cat([matrix, matrix], dim=1)[:, : matrix.shape[1]],
}


@pytest.fixture(params=["oneDNN", "MKL"], autouse=True)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "MKL":
        monkeypatch.setattr(matrix_product, "_ONEDNN_LINEAR", None)
    matrix_product._is_whole.cache_clear()


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("shape", [(33, 128, 200), (1, 7, 1), (256, 512, 128)], ids=str)
def test_a_product_is_that_of_float64_to_rounding(left: str, right: str, shape: tuple[int, int, int]) -> None:
    num_rows, num_inner, num_columns = shape
    generator = torch.Generator().manual_seed(0)
    left_MK = LAYOUTS[left](torch.randn(num_rows, num_inner, generator=generator))
    right_KN = LAYOUTS[right](torch.randn(num_inner, num_columns, generator=generator))
    found = product(left_MK, right_KN)
    assert found.shape == (num_rows, num_columns)
    torch.testing.assert_close(found.double(), left_MK.double() @ right_KN.double(), rtol=0, atol=1e-5 * num_inner**0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_stay_what_they_are(dtype: torch.dtype) -> None:
    left_MK, right_KN = torch.randn(8, 4).to(dtype), torch.randn(4, 8).to(dtype)
    assert torch.equal(product(left_MK, right_KN), left_MK @ right_KN)


def test_a_product_is_the_same_again() -> None:
    left_MK, right_KN = torch.randn(300, 128), torch.randn(128, 700)
    assert torch.equal(product(left_MK, right_KN), product(left_MK, right_KN))


def test_it_has_no_gradient() -> None:
    assert not product(torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)).requires_grad


PRODUCTS = """
import torch
from trainer.matrix_product import product
torch.manual_seed(0)
for rows, inner, columns in ((240, 64, 240), (33, 128, 200), (256, 512, 128), (2000, 128, 2000)):
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    torch.testing.assert_close(product(left, right), left @ right, rtol=0, atol=1e-3)
"""


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("limit", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "TRUE"}, {}], ids=str)
def test_a_product_is_whole_where_openmp_gives_fewer_threads_than_it_was_asked_for(limit: dict[str, str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "8", **limit}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
