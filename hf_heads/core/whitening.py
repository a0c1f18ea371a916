"""The query-key factors of a block in coordinates in which the data is white, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_heads.core.dense import DenseAttention
from hf_heads.core.statistics import BlockStatistics


def whitened_factors(dense: DenseAttention, statistics: BlockStatistics) -> tuple[Tensor, Tensor]:
    """Per-head factors S_q A_h and S_k B_h whose products the methods approximate, weighted by head.

    A_h = scale * W_Q,h and B_h = W_K,h; S is the square root of the centred covariance of either side's inputs.
    (heads, query_width, head_dim) and (heads, key_width, head_dim) in float64.
    """
    query_root, _ = statistics.query.square_root()
    key_root, _ = statistics.key.square_root()
    query = query_root @ (dense.query.double().cpu() * dense.scale)
    weights = statistics.head_weights
    if weights is not None:
        query = query * weights[:, None, None]
    return query, key_root @ dense.key.double().cpu()


def augmented_factors(dense: DenseAttention, statistics: BlockStatistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whitened factors of the scores with their biases: a query [x, 1] against a key y.

    [x, 1] is whitened by its second moment and y by its covariance, so that truncating the singular values is the
    best use of the rank for scores and biases together.

    Returns:
        (heads, query_width + 1, head_dim + 1), (heads, key_width, head_dim + 1), and the inverses of either whitening.
    """
    double = dense.double()
    heads, width, head_dim = dense.query.shape
    query = torch.zeros(heads, width + 1, head_dim + 1, dtype=torch.float64)
    query[:, :width, :head_dim] = double.query.cpu() * dense.scale
    query[:, width, :head_dim] = double.query_bias.cpu() * dense.scale
    query[:, width, head_dim] = 1.0
    key = torch.cat([double.key.cpu(), double.content_bias.cpu()[..., None]], -1)
    # [x, 1] = [x - m, 1] L with L = [[I, 0], [m, 1]]: whitening x and adding the mean's row afterwards.
    root, inverse = statistics.query.square_root()
    mean = statistics.query.mean
    query_root, query_inverse = (torch.zeros(width + 1, width + 1, dtype=torch.float64) for _ in range(2))
    query_root[:width, :width], query_root[width, :width], query_root[width, width] = root, mean, 1.0
    query_inverse[:width, :width], query_inverse[width, width] = inverse, 1.0
    query_inverse[width, :width] = -mean @ inverse
    key_root, key_inverse = statistics.key.square_root()
    return query_root @ query, key_root @ key, query_inverse, key_inverse


def score_factors(dense: DenseAttention, statistics: BlockStatistics) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Whitened factors of the scores for queries with a bias where the block's have one, and without where not.

    Returns:
        As `augmented_factors`, of x alone where the block's queries have no bias; the inverse of the query's whitening
        then has a row of zeros for the bias. And how the mean query combines the query factor's rows, (rows,).
    """
    query, key, query_inverse, key_inverse = augmented_factors(dense, statistics)
    mean_row = torch.zeros(query.shape[1], dtype=torch.float64)
    mean_row[-1] = 1.0
    if not dense.biases.query:
        root, inverse = statistics.query.square_root(centred=False)
        query = root @ dense.query.double().cpu() * dense.scale
        query = torch.nn.functional.pad(query, (0, key.shape[-1] - query.shape[-1]))
        query_inverse, mean_row = torch.nn.functional.pad(inverse, (0, 0, 0, 1)), statistics.query.mean @ inverse
    return query, key, query_inverse, key_inverse, mean_row


def content_bias(dense: DenseAttention, statistics: BlockStatistics, approximated: Tensor) -> Tensor:
    """What is left for a term y c_h that depends on the key alone, (heads, key_width).

    c_h = B_h b_q,h + the block's own content bias, and what the approximation gets wrong for the mean query:
    (A_h B_h^T - approximation_h)^T E[x].

    Args:
        approximated: (heads, key_width), approximation_h^T E[x].
    """
    double = dense.double()
    key = double.key.cpu()
    mean_query = torch.einsum("d,hde->he", statistics.query.mean, double.query.cpu()) + double.query_bias.cpu()
    exact = dense.scale * torch.einsum("hde,he->hd", key, mean_query) + double.content_bias.cpu()
    return exact - approximated
