"""Read instances.toml: points at which every rule of the calculus has an exact value.

`table()` gives the points as numbers, for the tests of the package; run as a script this writes Instances.v,
where Coq proves every one of them about the definitions in Rules.v, the ones that the theorems speak of.
"""

import ast
import math
import operator
import tomllib
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).resolve().parent
COUNTS = ("K", "T", "switches")  # natural numbers; every other input is a real number
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def evaluate(expression, ln=math.log):
    """The value of an expression of integers, + - * / ( ) and ln(x), as a float."""

    def walk(node):
        match node:
            case ast.Constant(value=int(value)):
                return Fraction(value)
            case ast.BinOp(left=left, op=op, right=right):
                return OPERATORS[type(op)](walk(left), walk(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.Call(func=ast.Name(id="ln"), args=[argument]):
                return ln(walk(argument))
        raise ValueError(f"not an expression of integers, + - * / and ln: {expression!r}")

    return float(walk(ast.parse(str(expression), mode="eval").body))


def coq(expression):
    """The same expression in Coq's words."""

    def walk(node):
        match node:
            case ast.Constant(value=int(value)):
                return str(value)
            case ast.BinOp(left=left, op=op, right=right):
                return f"({walk(left)} {SYMBOLS[type(op)]} {walk(right)})"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"(- {walk(operand)})"
            case ast.Call(func=ast.Name(id="ln"), args=[argument]):
                return f"(ln {walk(argument)})"
        raise ValueError(f"not an expression of integers, + - * / and ln: {expression!r}")

    return walk(ast.parse(str(expression), mode="eval").body)


def read(path=HERE / "instances.toml"):
    """{rule: {inputs, theorems}} and the list of points, as written."""
    content = tomllib.loads(path.read_text())
    for point in content["instance"]:
        declared = content["rules"][point["rule"]]["inputs"]
        if list(point["inputs"]) != declared:
            raise ValueError(f"{point['rule']}: inputs {list(point['inputs'])}, expected {declared}")
    missing = set(content["rules"]) - {point["rule"] for point in content["instance"]}
    if missing:
        raise ValueError(f"no instance of {sorted(missing)}")
    return content["rules"], content["instance"]


def table():
    """[(rule, {input: number}, value)], every point as numbers."""
    return [
        (
            point["rule"],
            {name: value if name in COUNTS else evaluate(value) for name, value in point["inputs"].items()},
            evaluate(point["value"]),
        )
        for point in read()[1]
    ]


HEADER = """(* Generated from instances.toml by instances.py; do not edit.
   Every rule of the calculus at points where its value can be written down exactly. *)
Require Import Reals Lra.
From Proofs Require Import Finite Rules.
Open Scope R_scope.

Lemma exp_twice_half x : 0 < x -> exp (2 * ln x / 2) = x.
Proof. intros H. replace (2 * ln x / 2) with (ln x) by field. apply exp_ln, H. Qed.

(* Natural numbers to numerals, exp(ln x) to x, tanh to a fraction; then both sides are equal as fractions. *)
Ltac numerals := rewrite ?INR_IZR_INZ; cbn [Z.of_nat Pos.of_succ_nat Pos.succ].
Ltac fractions := first [reflexivity | lra | field; lra | field].
Ltac logarithms := first [fractions | rewrite <- ln_1; apply (f_equal ln); fractions | apply (f_equal ln); fractions].
Ltac point := numerals; rewrite ?tanh_frac; rewrite ?exp_twice_half by lra; rewrite ?Ropp_0, ?exp_0, ?exp_Ropp; rewrite ?exp_ln by lra; logarithms.
"""


def proof(point):
    """The tactics for one point."""
    rule, inputs = point["rule"], {name: coq(value) for name, value in point["inputs"].items()}
    unfold = f"unfold rule_{rule}"
    if rule == "mix_modulus":  # the smaller of two numbers, each proved first
        share, k, top = Fraction(point["inputs"]["share"]), point["inputs"]["K"], Fraction(point["inputs"]["ceiling"])
        g = 1 + k * (1 - share) / share
        birkhoff, ceiling = (g - 1) / (g + 1), (1 - share) * top / ((1 - share) * top + share / k)
        two = f"{inputs['K']} {inputs['share']}"
        return (
            f"\n  assert (A : rule_mix_modulus_birkhoff {two} = {coq(birkhoff)}) by (unfold rule_mix_modulus_birkhoff; point)."
            f"\n  assert (B : rule_mix_modulus_ceiling {two} {inputs['ceiling']} = {coq(ceiling)})"
            " by (unfold rule_mix_modulus_ceiling; point)."
            f"\n  {unfold}. rewrite A, B. unfold Rmin; destruct Rle_dec; lra.\n"
        )
    if rule == "fixed_share_regret":
        share, k = Fraction(point["inputs"]["share"]), point["inputs"]["K"]
        return (
            f"\n  {unfold}. numerals."
            f"\n  replace ({k} / {coq(share)}) with {coq(k / share)} by field."
            f"\n  replace (1 / (1 - {coq(share)} + {coq(share)} / {k})) with {coq(1 / (1 - share + share / k))} by field. ring.\n"
        )
    if rule == "weight_shift":  # err l or r holds ln 3, the other side is larger
        return (
            f"\n  {unfold}. pose proof (ln_le_sub 3 ltac:(lra))."
            "\n  first [rewrite Rmin_left by lra | rewrite Rmin_right by lra]."
            "\n  match goal with |- tanh (?d / 4) = _ => replace d with (2 * ln 3) by ring end. point.\n"
        )
    if rule.startswith("power"):
        return f" {unfold}. unfold Rabs; destruct Rcase_abs; lra. "
    if rule.startswith("fixed_share_modulus"):
        unfold += ", rule_mix_modulus_birkhoff"
    return f" {unfold}. point. "


def main():
    lines = [HEADER]
    for number, point in enumerate(read()[1], start=1):
        arguments = " ".join(coq(value) for value in point["inputs"].values())
        claim = f"rule_{point['rule']} {arguments} = {coq(point['value'])}"
        lines.append(f"Lemma point_{number:02d}_{point['rule']} : {claim}.\nProof.{proof(point)}Qed.\n")
    (HERE / "Instances.v").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
