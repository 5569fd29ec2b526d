"""Equations as docstrings have them, in unicode, to LaTeX. Nothing about docstrings or Sphinx may live here.

    rₜ = σ(W_ir xₜ + b_ir)      reset gate      ->      r_{t} &= \\sigma(W_{ir} x_{t} + b_{ir}) && \\text{reset gate}

Names of one letter are symbols, with what follows an underscore below them; longer ones are functions, words, or names in code.
"""

import re
import unicodedata

RELATIONS = "=←~"
FUNCTIONS = {"tanh", "exp", "log", "max", "min", "cos", "sin"}
"""What LaTeX has a command for; names of other functions are set upright."""

SYMBOLS = {
    "⊙": r"\odot", "∗": "*", "·": r"\cdot", "×": r"\times", "−": "-", "←": r"\leftarrow", "~": r"\sim", "≤": r"\le", "≥": r"\ge",
    "≠": r"\ne", "∈": r"\in", "∞": r"\infty", "…": r"\dots", "′": "'", "%": r"\%", "&": r"\&", "#": r"\#", "{": r"\{", "}": r"\}",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "θ": r"\theta", "λ": r"\lambda",
    "μ": r"\mu", "ν": r"\nu", "π": r"\pi", "σ": r"\sigma", "τ": r"\tau", "φ": r"\varphi", "ω": r"\omega", "Λ": r"\Lambda",
    "Σ": r"\Sigma", "Φ": r"\Phi", "Ω": r"\Omega",
}  # fmt: skip
BELOW = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₜₖₙₕ", "0123456789+-tknh", strict=True))
ABOVE = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀᵐⁿʳᵗ", "0123456789+-Tmnrt", strict=True))
TILDE = "\u0303"

TOKEN = re.compile(
    rf"(?P<below>[{''.join(BELOW)}]+)|(?P<above>[{''.join(ABOVE)}]+)|(?P<name>[A-Za-z]+(?:_[A-Za-z0-9]+)*)|(?P<code>`[^`]*`)"
    r"|(?P<script>[_^])|(?P<root>√)|(?P<space>\s+)|(?P<other>.)"
)


def latex(text: str) -> str:
    """One expression."""
    text = "".join(unicodedata.normalize("NFD", c) if c.isalpha() else c for c in text)
    made, at = "", 0
    while at < len(text):
        piece, at = _next(text, at)
        if text[at : at + 1] == TILDE:
            piece, at = rf"\tilde{{{piece}}}", at + 1
        made += " " if re.search(r"\\[a-zA-Z]+$", made) and piece[:1].isalpha() else ""
        made += piece
    return re.sub(r" +", " ", made).strip()


def _next(text: str, at: int) -> tuple[str, int]:
    """What stands at this place, in LaTeX, and the place behind it."""
    found = TOKEN.match(text, at)
    assert found is not None  # "other" is any character
    kind, token, end = found.lastgroup, found.group(), found.end()
    if kind == "below":
        return f"_{{{''.join(BELOW[c] for c in token)}}}", end
    if kind == "above":
        return f"^{{{''.join(ABOVE[c] for c in token)}}}", end
    if kind == "name":
        return _name(token, text[end : end + 1]), end
    if kind == "code":
        return _code(token.strip("`")), end
    if kind == "script":
        inner, end = _argument(text, end)
        return f"{token}{{{inner}}}", end
    if kind == "root":
        inner, end = _argument(text, end)
        return rf"\sqrt{{{inner}}}", end
    return (" " if kind == "space" else SYMBOLS.get(token, token)), end


def _argument(text: str, at: int) -> tuple[str, int]:
    """What a root or a script is of: what stands in brackets, without them, or one token."""
    if text[at : at + 1] not in ("(", "{"):
        return _next(text, at)
    opening, closing = text[at], {"(": ")", "{": "}"}[text[at]]
    depth = 0
    for end in range(at, len(text)):
        depth += (text[end] == opening) - (text[end] == closing)
        if depth == 0:
            return latex(text[at + 1 : end]), end + 1
    raise ValueError(f"an equation should close its brackets, got {text!r}.")


def _name(name: str, following: str) -> str:
    first, _, rest = name.partition("_")
    if len(first) > 1 and rest:
        return _code(name)
    if len(first) == 1:
        return f"{first}_{{{rest}}}" if rest else first
    if first in FUNCTIONS:
        return rf"\{first}"
    return rf"\operatorname{{{first}}}" if following == "(" else rf"\mathrm{{{first}}}"


def _code(name: str) -> str:
    escaped = name.replace("_", r"\_")
    return rf"\texttt{{{escaped}}}"


def role(text: str) -> str:
    """What stands at the right of an equation: words, with symbols among them."""
    words = text.split()
    plain = [_is_word(word) for word in words]
    for k, word in enumerate(words):  # the article, between words
        plain[k] = plain[k] or (word in ("a", "A") and 0 < k < len(words) - 1 and plain[k - 1] and plain[k + 1])
    made, k = [], 0
    while k < len(words):
        end = next((j for j in range(k, len(words)) if plain[j] != plain[k]), len(words))
        run = " ".join(words[k:end])
        made.append(rf"\text{{{' ' if k else ''}{run}{' ' if end < len(words) else ''}}}" if plain[k] else latex(run))
        k = end
    return "".join(made)


def _is_word(word: str) -> bool:
    core = word.strip("(),.;:\"'")
    return bool(re.fullmatch(r"[A-Za-z]{2,}(?:[-'][A-Za-z]+)*", core)) and core not in FUNCTIONS


def row(line: str) -> str:
    """One line of a block: an equation, perhaps more, and perhaps its role, in columns of `aligned`."""
    chunks: list[str] = []
    for chunk in re.split(r"\s{2,}", line.strip()):
        if chunks and (chunk[0] in RELATIONS or chunks[-1][-1] in RELATIONS):
            chunks[-1] += f" {chunk}"
        else:
            chunks.append(chunk)
    equations = [chunks.pop(0)]
    while chunks and re.match(rf"[^\s{RELATIONS}]+ [{RELATIONS}] ", chunks[0]):
        equations.append(chunks.pop(0))
    left, relation, right = _parted(equations[0])
    made = f"{latex(left)} &{latex(relation)} {latex(right)}" if relation else f"{latex(left)} &"
    made += "".join(rf"\quad {latex(equation)}" for equation in equations[1:])
    return made + (f" && {role(' '.join(chunks))}" if chunks else "")


def _parted(equation: str) -> tuple[str, str, str]:
    found = re.search(rf" ([{RELATIONS}]) ", equation)
    return (equation[: found.start()], found.group(1), equation[found.end() :]) if found else (equation, "", "")


def display(lines: list[str]) -> str:
    """A block of equations, aligned at their relations."""
    rows = [row(line) for line in lines if line.strip()]
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"
