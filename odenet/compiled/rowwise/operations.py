"""Operations element by element, each as a C++ expression; one line adds one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

aten, prims = torch.ops.aten, torch.ops.prims


@dataclass(frozen=True)
class Pointwise:
    """An operation.

    Attributes:
        template: C++ expression of {0}, {1}, ..., the operands.
        truth: whether the result is a truth value.
        linear: "sum" if it is linear in all operands together, "left" in the first alone, "either" in each alone;
            "" otherwise.
    """

    template: str
    truth: bool = False
    linear: str = ""


def _each(overloads: str, name: str, entry: Pointwise) -> dict[Any, Pointwise]:
    packet = getattr(aten, name)
    return {getattr(packet, overload): entry for overload in overloads.split() if hasattr(packet, overload)}


POINTWISE: dict[Any, Pointwise] = {}
BINARY = "Tensor Scalar Scalar_Tensor Tensor_Scalar Tensor_Tensor default"
for _name, _template in {
    "abs": "std::fabs({0})",
    "exp": "exp_({0})",
    "exp2": "std::exp2({0})",
    "expm1": "std::expm1({0})",
    "log": "log_({0})",
    "log1p": "std::log1p({0})",
    "log2": "std::log2({0})",
    "sqrt": "std::sqrt({0})",
    "rsqrt": "T(1) / std::sqrt({0})",
    "sin": "sin_({0})",
    "cos": "cos_({0})",
    "tan": "std::tan({0})",
    "asin": "std::asin({0})",
    "acos": "std::acos({0})",
    "atan": "std::atan({0})",
    "sinh": "std::sinh({0})",
    "cosh": "std::cosh({0})",
    "tanh": "tanh_({0})",
    "asinh": "std::asinh({0})",
    "erf": "std::erf({0})",
    "sigmoid": "sigmoid_({0})",
    "relu": "({0} > 0 ? {0} : ({0} == {0} ? T(0) : {0}))",
    "reciprocal": "T(1) / {0}",
    "sign": "T(({0} > 0) - ({0} < 0))",
    "floor": "std::floor({0})",
    "ceil": "std::ceil({0})",
    "trunc": "std::trunc({0})",
}.items():
    POINTWISE |= _each("default", _name, Pointwise(_template))
POINTWISE |= _each("default", "neg", Pointwise("-{0}", linear="sum"))
for _name, _template, _linear in (
    ("mul", "{0} * {1}", "either"),
    ("div", "{0} / {1}", "left"),
    ("maximum", "({0} > {1} || {0} != {0} ? {0} : {1})", ""),
    ("minimum", "({0} < {1} || {0} != {0} ? {0} : {1})", ""),
    ("atan2", "std::atan2({0}, {1})", ""),
    ("remainder", "({0} - {1} * std::floor({0} / {1}))", ""),
):
    POINTWISE |= _each(BINARY, _name, Pointwise(_template, linear=_linear))
for _name, _sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
    POINTWISE |= _each(BINARY, _name, Pointwise(f"({{0}} {_sign} {{1}})", truth=True))
for _name, _sign in (
    ("logical_and", "&&"),
    ("logical_or", "||"),
    ("bitwise_and", "&&"),
    ("bitwise_or", "||"),
):
    POINTWISE |= _each(BINARY, _name, Pointwise(f"({{0}} {_sign} {{1}})", truth=True))
for _name in ("logical_not", "bitwise_not"):
    POINTWISE |= _each("default", _name, Pointwise("(!{0})", truth=True))
POINTWISE |= _each("default", "isnan", Pointwise("({0} != {0})", truth=True))
POINTWISE |= _each("self", "where", Pointwise("({0} ? {1} : {2})"))


def scaled(sign: str, alpha: Any) -> Pointwise:
    """a ± alpha b."""
    return Pointwise(f"{{0}} {sign} {{1}}" if alpha == 1 else f"{{0}} {sign} T({float(alpha)!r}) * {{1}}", linear="sum")


def clamped(low: Any, high: Any) -> Pointwise:
    """Between two numbers, of which one may be None."""
    template = "{0}"
    if low is not None:
        template = f"({{0}} < T({float(low)!r}) ? T({float(low)!r}) : {{0}})"
    if high is not None:
        template = f"({template} > T({float(high)!r}) ? T({float(high)!r}) : {template})"
    return Pointwise(template)


def power(exponent: Any) -> Pointwise:
    """x to a constant power."""
    if exponent in (2, 3, 4):
        return Pointwise("(" + " * ".join(["{0}"] * int(exponent)) + ")")
    known = {0: "T(1)", 1: "{0}", 0.5: "std::sqrt({0})", -1: "T(1) / {0}", -0.5: "T(1) / std::sqrt({0})"}
    if exponent in known:
        return Pointwise(known[exponent])
    if exponent == -2:
        return Pointwise("T(1) / ({0} * {0})")
    return Pointwise(f"pow_({{0}}, T({float(exponent)!r}))")


def special(target: Any, args: Any, kwargs: Any) -> tuple[Pointwise, tuple[Any, ...]] | None:
    """Operations whose numbers are part of the expression: what is done, and to what."""
    if target in (aten.add.Tensor, aten.add.Scalar):
        return scaled("+", kwargs.get("alpha", 1)), args[:2]
    if target in (aten.sub.Tensor, aten.sub.Scalar):
        return scaled("-", kwargs.get("alpha", 1)), args[:2]
    if target is aten.rsub.Scalar and kwargs.get("alpha", args[2] if len(args) > 2 else 1) == 1:
        return scaled("-", 1), (args[1], args[0])
    if target is aten.clamp.default:
        low, high = (*args[1:], None, None)[:2]
        return clamped(kwargs.get("min", low), kwargs.get("max", high)), args[:1]
    if target is aten.clamp_min.default:
        return clamped(args[1], None), args[:1]
    if target is aten.clamp_max.default:
        return clamped(None, args[1]), args[:1]
    if str(target) == "prims.fma.default":  # known by name: Inductor adds it when it is loaded
        return Pointwise("{0} * {1} + {2}"), args[:3]
    if target is aten.pow.Tensor_Scalar and isinstance(args[1], int | float):
        return power(args[1]), args[:1]
    if target in (aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar):
        return Pointwise("pow_({0}, {1})"), args[:2]
    return None


CONSTANT = {
    aten.full.default: lambda args: args[1],
    aten.full_like.default: lambda args: args[1],
    aten.new_full.default: lambda args: args[2],
    aten.scalar_tensor.default: lambda args: args[0],
    aten.zeros.default: lambda args: 0,
    aten.zeros_like.default: lambda args: 0,
    aten.new_zeros.default: lambda args: 0,
    aten.ones.default: lambda args: 1,
    aten.ones_like.default: lambda args: 1,
    aten.new_ones.default: lambda args: 1,
}
SAME = {
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.contiguous.default,
    aten._to_copy.default,
    prims.convert_element_type.default,
}
RESHAPE = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints}
