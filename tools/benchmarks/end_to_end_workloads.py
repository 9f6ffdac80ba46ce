"""The workloads of end_to_end.py: custom ops with their implementations, and models around them.

Tokens are the dimension that is dispatched on. A model has what stands beside such an op in
practice: a residual connection, a bias, an activation, a scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from in_turn import patched

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning


EPS = 1e-6
LIBRARY = "range_dispatch_end_to_end"

Function = Callable[..., Any]
# The label of an implementation for each op of a workload.
Choice = dict[str, str]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        function: The implementation, of the op's arguments.
        parameters: What it is called with besides.
        most_tokens: Compiled alone it is not tried beyond, where it is out of the question.
    """

    function: Function
    parameters: Mapping[str, Any]
    most_tokens: float = math.inf

    def bound(self) -> Function:
        return partial(self.function, **self.parameters) if self.parameters else self.function

    def config(self) -> CustomOpConfig:
        return CustomOpConfig(self.function, **self.parameters)


@dataclass(frozen=True)
class Op:
    """A custom op and its implementations by label, the plain one first.

    Attributes:
        tokens_of: The argument whose first dimension are the tokens.
        check: Tolerances for the answers of the implementations, where the default is too narrow.
    """

    custom_op: Any
    tokens_of: str
    implementations: Mapping[str, Implementation]
    check: Mapping[torch.dtype, float] = field(default_factory=dict)

    def register(self, split_points: Sequence[int], top: int, probes: Sequence[int] = ()) -> None:
        """Register it with the patch, or with stock: what this process has."""
        more: dict[str, Any] = {"probe_sizes": list(probes)} if probes else {}
        if self.check and patched():
            more["check"] = dict(self.check)
        register_custom_op_autotuning(
            self.custom_op,
            configs=[i.config() for i in self.implementations.values()],
            dispatch_on={"tensor_name": self.tokens_of, "dim": 0, "range_upper_bound": top},
            split_points=list(split_points),
            **more,
        )


@dataclass(frozen=True)
class Workload:
    """A model with ops in it, at any number of tokens.

    Attributes:
        ops: The ops by name.
        model: Makes the model from a function for each op.
        inputs: Makes the tensors that have the tokens as their first dimension, from their number
            and the dimensions.
        weights: Makes the other tensors.
        dimensions: Sizes by name, for a GPU, a CPU and the smallest form.
    """

    ops: Mapping[str, Op]
    model: Callable[[Mapping[str, Function]], Function]
    inputs: Callable[[int, Mapping[str, int]], tuple[Tensor, ...]]
    weights: Callable[[Mapping[str, int]], tuple[Tensor, ...]]
    dimensions: Mapping[str, Mapping[str, int]]

    def plain(self) -> Choice:
        return {name: next(iter(op.implementations)) for name, op in self.ops.items()}

    def choices(self) -> list[Choice]:
        """The plain implementations, and every other one of each op among plain ones."""
        plain = self.plain()
        others = [
            plain | {name: label}
            for name, op in self.ops.items()
            for label in list(op.implementations)[1:]
        ]
        return [plain, *others]

    def most_tokens(self, choice: Choice) -> float:
        return min(self.ops[n].implementations[label].most_tokens for n, label in choice.items())

    def chosen(self, choice: Choice) -> Function:
        """The model with implementations in place of the ops."""
        return self.model(
            {n: self.ops[n].implementations[label].bound() for n, label in choice.items()}
        )

    def with_ops(self) -> Function:
        return self.model({name: op.custom_op for name, op in self.ops.items()})


def custom_op(name: str) -> Callable[[Function], Any]:
    return torch.library.custom_op(f"{LIBRARY}::{name}", mutates_args=())


# --- RMSNorm ---


def norm_plain(x: Tensor, weight: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight


def norm_blocks(x: Tensor, weight: Tensor, blocks: int) -> Tensor:
    """Sums of blocks of the row first: more parallel work when there are few rows."""
    x32 = x.float()
    partial_sums = x32.square().unflatten(-1, (blocks, -1)).sum(-1)
    scale = torch.rsqrt(partial_sums.sum(-1, keepdim=True) / x.shape[-1] + EPS)
    return (x32 * scale).to(x.dtype) * weight


@custom_op("rms_norm")
def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return norm_plain(x, weight)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


RMS_NORM = Op(
    rms_norm,
    "x",
    {
        "plain": Implementation(norm_plain, {}),
        "blocks=4": Implementation(norm_blocks, {"blocks": 4}),
        "blocks=16": Implementation(norm_blocks, {"blocks": 16}),
    },
)


def norm_model(ops: Mapping[str, Function]) -> Function:
    norm = ops["rms_norm"]

    def residual_norm_scale(
        x: Tensor, residual: Tensor, weight: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = x + residual
        return norm(total, weight) * scale, total

    return residual_norm_scale


# --- skinny matmul ---


def mm_plain(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def mm_split_k(a: Tensor, b: Tensor, splits: int) -> Tensor:
    """Products over parts of k, then their sum."""
    parts = a.unflatten(1, (splits, -1)).transpose(0, 1) @ b.unflatten(0, (splits, -1))
    return parts.float().sum(0).to(a.dtype)


def mm_as_sum(a: Tensor, b: Tensor) -> Tensor:
    """Multiply and add up: one fused reduction, no call of a library."""
    return (a.unsqueeze(2).float() * b.unsqueeze(0).float()).sum(1).to(a.dtype)


@custom_op("skinny_mm")
def skinny_mm(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@skinny_mm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


SKINNY_MM = Op(
    skinny_mm,
    "a",
    {
        "plain": Implementation(mm_plain, {}),
        "split_k=4": Implementation(mm_split_k, {"splits": 4}),
        "split_k=16": Implementation(mm_split_k, {"splits": 16}),
        "as_sum": Implementation(mm_as_sum, {}, most_tokens=64),
    },
)


def matmul_model(ops: Mapping[str, Function]) -> Function:
    matmul = ops["skinny_mm"]

    def matmul_bias_silu(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        return F.silu(matmul(a, b) + bias)

    return matmul_bias_silu


# --- SwiGLU MLP; gate and up lie in one weight of shape [2 * inner, hidden] ---


def swiglu_packed(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def swiglu_two(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, 0)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def swiglu_batched(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = torch.matmul(x, gate_up.unflatten(0, (2, -1)).mT)
    return F.linear(F.silu(gate) * up, down)


@custom_op("swiglu")
def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return swiglu_packed(x, gate_up, down)


@swiglu.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], down.shape[0])


SWIGLU = Op(
    swiglu,
    "x",
    {
        "packed": Implementation(swiglu_packed, {}),
        "two": Implementation(swiglu_two, {}),
        "batched": Implementation(swiglu_batched, {}),
    },
)


def mlp_model(ops: Mapping[str, Function]) -> Function:
    mlp = ops["swiglu"]

    def scaled_mlp_residual(x: Tensor, scale: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return x + mlp(x * scale, gate_up, down) * scale

    return scaled_mlp_residual


# --- attention of [tokens, heads, depth] to a cache of [heads, positions, depth] ---


def attend_library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None])
    return out[0].transpose(0, 1).contiguous()


def attend_explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q.transpose(0, 1) / math.sqrt(q.shape[-1]) @ k.mT).float()
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1).contiguous()


def attend_split(q: Tensor, k: Tensor, v: Tensor, splits: int) -> Tensor:
    """Parts of the cache on their own, then their sum by weight: parallel where tokens are few."""
    keys, values = k.unflatten(1, (splits, -1)), v.unflatten(1, (splits, -1))
    queries = q.transpose(0, 1)[:, None] / math.sqrt(q.shape[-1])
    scores = (queries @ keys.mT).float()
    highest = scores.amax(-1, keepdim=True)
    powers = (scores - highest).exp()
    parts = (powers.to(v.dtype) @ values).float()
    weights = (highest - highest.amax(1, keepdim=True)).exp()
    total = (powers.sum(-1, keepdim=True) * weights).sum(1)
    return ((parts * weights).sum(1) / total).to(q.dtype).transpose(0, 1).contiguous()


@custom_op("attend")
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend_library(q, k, v)


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)


ATTEND = Op(
    attend,
    "q",
    {
        "library": Implementation(attend_library, {}),
        "explicit": Implementation(attend_explicit, {}),
        "split=8": Implementation(attend_split, {"splits": 8}),
        "split=32": Implementation(attend_split, {"splits": 32}, most_tokens=1024),
    },
    # Of the scores, some are large, and rounded to bfloat16 in all implementations but the library.
    check={torch.bfloat16: 0.1},
)


def attention_model(ops: Mapping[str, Function]) -> Function:
    attention = ops["attend"]

    def scaled_attention_gate(x: Tensor, scale: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = (x * scale).view(x.shape[0], k.shape[0], k.shape[2])
        return x + attention(q, k, v).view(x.shape[0], -1) * torch.sigmoid(x)

    return scaled_attention_gate


# --- matmul with weights in int8 [out, in], and a scale for each output ---


def int8_dequantize(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype) * scale[:, None])


def int8_scale_after(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype)) * scale


def int8_as_sum(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Reads the weights as they are: a quarter of the memory traffic where tokens are few."""
    return ((x.unsqueeze(1).float() * weight.float()).sum(-1) * scale).to(x.dtype)


@custom_op("int8_linear")
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return int8_dequantize(x, weight, scale)


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


INT8_LINEAR = Op(
    int8_linear,
    "x",
    {
        "dequantize": Implementation(int8_dequantize, {}),
        "scale_after": Implementation(int8_scale_after, {}),
        "as_sum": Implementation(int8_as_sum, {}, most_tokens=64),
    },
)


def int8_model(ops: Mapping[str, Function]) -> Function:
    linear = ops["int8_linear"]

    def int8_linear_bias_gelu(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(linear(x, weight, scale) + bias)

    return int8_linear_bias_gelu


# --- cross-entropy of logits [tokens, vocabulary] ---


def loss_plain(logits: Tensor, target: Tensor) -> Tensor:
    return -F.log_softmax(logits.float(), -1).gather(1, target[:, None])[:, 0]


def loss_logsumexp(logits: Tensor, target: Tensor) -> Tensor:
    return torch.logsumexp(logits.float(), -1) - logits.gather(1, target[:, None])[:, 0].float()


def loss_chunked(logits: Tensor, target: Tensor, chunks: int) -> Tensor:
    """Maximum and sum of each chunk of the vocabulary, then of the chunks."""
    parts = logits.float().unflatten(1, (chunks, -1))
    highest = parts.amax(-1)
    sums = (parts - highest[..., None]).exp().sum(-1)
    top = highest.amax(-1, keepdim=True)
    total = (sums * (highest - top).exp()).sum(-1)
    return total.log() + top[:, 0] - logits.gather(1, target[:, None])[:, 0].float()


@custom_op("token_loss")
def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return loss_plain(logits, target)


@token_loss.register_fake
def _(logits: Tensor, target: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


TOKEN_LOSS = Op(
    token_loss,
    "logits",
    {
        "plain": Implementation(loss_plain, {}),
        "logsumexp": Implementation(loss_logsumexp, {}),
        "chunks=8": Implementation(loss_chunked, {"chunks": 8}),
        "chunks=64": Implementation(loss_chunked, {"chunks": 64}),
    },
)


def loss_model(ops: Mapping[str, Function]) -> Function:
    loss = ops["token_loss"]

    def capped_weighted_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return loss(30 * torch.tanh(logits / 30), target) * weight

    return capped_weighted_loss


# --- a transformer block ---


def block_model(ops: Mapping[str, Function]) -> Function:
    norm, attention, mlp = ops["rms_norm"], ops["attend"], ops["swiglu"]

    def block(
        x: Tensor,
        norm1: Tensor,
        query: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        norm2: Tensor,
        gate_up: Tensor,
        down: Tensor,
    ) -> Tensor:
        q = F.linear(norm(x, norm1), query).view(x.shape[0], k.shape[0], k.shape[2])
        x = x + F.linear(attention(q, k, v).view(x.shape[0], -1), out)
        return x + mlp(norm(x, norm2), gate_up, down)

    return block


def _few(op: Op, *labels: str) -> Op:
    return replace(op, implementations={label: op.implementations[label] for label in labels})


# --- tensors; device and dtype are the caller's ---


def _normal(*shape: int, spread: float = 1.0) -> Tensor:
    return torch.randn(*shape) * spread


def _weight(out: int, inner: int) -> Tensor:
    return _normal(out, inner, spread=inner**-0.5)


def _cache(d: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    shape = (d["heads"], d["positions"], d["hidden"] // d["heads"])
    return _normal(*shape), _normal(*shape)


def _hidden(tokens: int, d: Mapping[str, int]) -> tuple[Tensor, ...]:
    return (_normal(tokens, d["hidden"]),)


def _int8_weights(d: Mapping[str, int]) -> tuple[Tensor, ...]:
    weight = torch.randint(-127, 128, (d["hidden"], d["hidden"]), dtype=torch.int8)
    scale = torch.rand(d["hidden"]) / (64 * d["hidden"] ** 0.5)
    return weight, scale, _normal(d["hidden"])


def _swiglu_weights(d: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    return _weight(2 * d["inner"], d["hidden"]), _weight(d["hidden"], d["inner"])


def _block_weights(d: Mapping[str, int]) -> tuple[Tensor, ...]:
    hidden = d["hidden"]
    norm1, query = _normal(hidden), _weight(hidden, hidden)
    out, norm2 = _weight(hidden, hidden), _normal(hidden)
    return (norm1, query, *_cache(d), out, norm2, *_swiglu_weights(d))


WORKLOADS: dict[str, Workload] = {
    "rms_norm": Workload(
        {"rms_norm": RMS_NORM},
        norm_model,
        lambda tokens, d: (_normal(tokens, d["hidden"]), _normal(tokens, d["hidden"])),
        lambda d: (_normal(d["hidden"]), _normal(d["hidden"])),
        {"cuda": {"hidden": 8192}, "cpu": {"hidden": 2048}, "tiny": {"hidden": 64}},
    ),
    "skinny_matmul": Workload(
        {"skinny_mm": SKINNY_MM},
        matmul_model,
        lambda tokens, d: (_normal(tokens, d["k"], spread=d["k"] ** -0.5),),
        lambda d: (_normal(d["k"], d["n"]), _normal(d["n"])),
        {"cuda": {"k": 8192, "n": 1024}, "cpu": {"k": 4096, "n": 64}, "tiny": {"k": 64, "n": 16}},
    ),
    "swiglu": Workload(
        {"swiglu": SWIGLU},
        mlp_model,
        _hidden,
        lambda d: (_normal(d["hidden"]), *_swiglu_weights(d)),
        {
            "cuda": {"hidden": 2048, "inner": 5632},
            "cpu": {"hidden": 256, "inner": 704},
            "tiny": {"hidden": 32, "inner": 48},
        },
    ),
    "attention": Workload(
        {"attend": ATTEND},
        attention_model,
        _hidden,
        lambda d: (_normal(d["hidden"], spread=0.5), *_cache(d)),
        {
            "cuda": {"hidden": 2048, "heads": 16, "positions": 4096},
            "cpu": {"hidden": 256, "heads": 4, "positions": 1024},
            "tiny": {"hidden": 32, "heads": 2, "positions": 64},
        },
    ),
    "int8_matmul": Workload(
        {"int8_linear": INT8_LINEAR},
        int8_model,
        _hidden,
        _int8_weights,
        {"cuda": {"hidden": 4096}, "cpu": {"hidden": 512}, "tiny": {"hidden": 32}},
    ),
    "cross_entropy": Workload(
        {"token_loss": TOKEN_LOSS},
        loss_model,
        lambda tokens, d: (
            _normal(tokens, d["vocabulary"]),
            torch.randint(0, d["vocabulary"], (tokens,)),
            torch.rand(tokens),
        ),
        lambda d: (),
        {
            "cuda": {"vocabulary": 32768},
            "cpu": {"vocabulary": 8192},
            "tiny": {"vocabulary": 128},
        },
    ),
    "block": Workload(
        {
            "rms_norm": _few(RMS_NORM, "plain", "blocks=16"),
            "attend": _few(ATTEND, "library", "explicit", "split=8"),
            "swiglu": _few(SWIGLU, "packed", "two"),
        },
        block_model,
        _hidden,
        _block_weights,
        {
            "cuda": {"hidden": 2048, "heads": 16, "positions": 2048, "inner": 5632},
            "cpu": {"hidden": 256, "heads": 4, "positions": 512, "inner": 704},
            "tiny": {"hidden": 32, "heads": 2, "positions": 64, "inner": 48},
        },
    ),
}


def make_tensors(
    made: Callable[[], tuple[Tensor, ...]], device: str, dtype: torch.dtype, first: int
) -> tuple[Tensor, ...]:
    """Tensors on a device, equal in every process, with static sizes from ``first`` on."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            tensors = made()
    finally:
        torch.set_default_dtype(before)
    for tensor in tensors:
        for dim in range(first, tensor.dim()):
            torch._dynamo.mark_static(tensor, dim)
    return tensors
