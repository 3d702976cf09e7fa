"""The operations that LRP covers, by rule; docs/relevance.md lists them."""

from __future__ import annotations

from vital_exp.models.axes import Operation

# Operations that move, select, copy or cut values: relevance follows the plain gradient.
MOVEMENTS = frozenset(
    {
        *("cat", "stack", "hstack", "vstack", "dstack", "chunk", "split", "split_with_sizes", "tensor_split", "unbind"),
        *("getitem", "setitem", "select", "narrow", "index_select", "gather", "take_along_dim", "topk", "sort"),
        *("diagonal", "tril", "triu", "where", "masked_fill", "pad", "roll", "flip", "rot90", "fliplr", "flipud"),
        *("reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *("permute", "transpose", "t", "T", "mT", "H", "mH", "swapaxes", "movedim", "rearrange", "real"),
        *("expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "contiguous", "clone"),
        *("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold"),
    }
)
# Relevance passes these operations unchanged: norms (whose statistics count as constants), dropout, and functions of
# single values. Only the first argument may be an activation.
IDENTITIES = frozenset(
    {
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"),
        *("feature_alpha_dropout", "stochastic_depth", "neg", "abs", "square", "sqrt", "erf", "log_softmax"),
        *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "leaky_relu", "prelu", "rrelu"),
        *("gelu", "silu", "mish", "hardswish", "elu", "selu", "celu", "softplus", "softsign", "sigmoid", "hardsigmoid"),
        *("logsigmoid", "tanh", "hardshrink", "softshrink", "tanhshrink"),
    }
)
# Statistics that normalise an activation count as constants, as in batch and layer norm (ConvNeXt V2's response norm).
CONSTANTS = frozenset({"norm", "linalg_norm", "linalg_vector_norm", "var", "std", "var_mean", "std_mean", "rsqrt"})
# Each value receives the share that it contributed to a mean or a sum.
AVERAGES = frozenset(
    {
        *("mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate", "fold"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    }
)
# Relevance is shared as for the mean over the values that the maximum (or minimum) ranges over.
MAXIMA = frozenset(
    {
        *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
        *("adaptive_max_pool3d", "amax", "amin", "max", "min"),
    }
)
CONVOLUTIONS = frozenset({*("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")})

# Rules, each with the operations that follow it.
COVERED: dict[str, frozenset[str]] = {
    "movement": MOVEMENTS,
    "identity": IDENTITIES,
    "constant": CONSTANTS,
    "average": AVERAGES,
    "maximum": MAXIMA,
    "larger of two": frozenset({"maximum", "minimum"}),
    "linear": CONVOLUTIONS | {"linear"},
    "sum of two": frozenset({"add", "sub", "rsub", "lerp"}),
    "product of two": frozenset({"mul", "div", "glu", "pow"}),
    "matrix product": frozenset({"matmul", "mm", "bmm", "mv", "dot", "einsum", "tensordot"}),
    "sum with a product": frozenset({"addcmul", "addmm", "addmv", "baddbmm"}),
    "softmax": frozenset({"softmax"}),
    "attention": frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"}),
}

# Other names that torch gives to an operation.
ALIASES = {
    **{
        "_max_pool2d": "max_pool2d",
        "_pad": "pad",
        "_threshold": "threshold",
        "log_sigmoid": "logsigmoid",
        "truediv": "div",
        "divide": "div",
    },
    **{"concat": "cat", "concatenate": "cat", "moveaxis": "movedim", "swapdims": "swapaxes", "clip": "clamp"},
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "idiv": "div", "true_divide": "div"},
    **{"radd": "add", "rmul": "mul", "multiply": "mul", "subtract": "sub", "negative": "neg", "absolute": "abs"},
    **{"unsafe_chunk": "chunk", "unsafe_split": "split", "adjoint": "mH"},
}


def operation_name(func: Operation) -> str:
    """Return the name of an operation, the same for its in-place, reflected and property forms.

    For instance ``relu`` for ``relu_``, ``add`` for ``__iadd__`` and ``__radd__``, ``T`` for the property.
    """
    name = str(getattr(func, "__name__", func))
    if name == "__get__":  # the getter of a property such as x.T
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    plain = name.removeprefix("__").removesuffix("__").rstrip("_")
    return ALIASES.get(plain, plain)
