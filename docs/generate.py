"""Writes what the documentation takes from the code: a page per verb of the command line (`verbs/`) and the
tables between `<!-- generated: NAME -->` and `<!-- end -->` in README.md.

    python docs/generate.py            # or: make docs
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union

import tyro

import zeroshift as zs
from zeroshift.app.cli import VERBS
from zeroshift.config.methods import KINDS, METHODS
from zeroshift.config.options import to_dict
from zeroshift.config.recipes import RECIPES, recipe
from zeroshift.config.schema import AdaptConfig

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"

WIDTH = 110
"""Columns of running text."""

PYTHON = {"push": "push_to_hub"}
"""Verb -> its function in `zeroshift`, where the name differs."""

WITHOUT_FUNCTION = {
    "doctor": "There is no function for it; programs read `zeroshift doctor --json`.",
    "portraits": "`zs.portraits.render(z, domain, size)` gives true pictures BCHW in [-1, 1] of latents BZ, "
    "without files.",
}
"""Verb -> what stands in place of a Python function."""

HOME_OF_RECIPE = {"portraits-ddpm": "portraits-ddpm", "diffusionclip": "hf:google/ddpm-celebahq-256"}
"""Recipe -> the generator it is shown with, where that is not `portraits`."""


@dataclass(frozen=True)
class Option:
    """One option of a verb: a row of its table."""

    flags: tuple[str, ...]
    """How it is written; for a positional argument its name in capitals."""
    kind: str
    """Type, choices and range in words."""
    default: str
    """Default as written on the command line; "required" where it has none."""
    text: str
    """Help text."""
    positional: bool = False

    @property
    def row(self) -> str:
        """A row of a Markdown table."""
        names = "<br>".join(f"`{flag}`" for flag in self.flags)
        return f"| {' | '.join(escaped(part) for part in (names, self.kind, self.default, self.text))} |"


@dataclass
class Group:
    """Options under one heading."""

    title: str
    text: str = ""
    options: list[Option] = field(default_factory=list)


def escaped(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


@cache
def help_texts(made: type) -> dict[str, str]:
    """Field -> the docstring under it, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for item, following in zip(body.body, [*body.body[1:], None], strict=True):
        said = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and said:
            assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            found[item.target.id] = " ".join(str(following.value.value).split())
    return found


def summary(made: type) -> str:
    """The docstring of a class on one line."""
    return " ".join((made.__doc__ or "").split())


def parts(hint: Any) -> tuple[Any, list[Any]]:
    """A type, and everything that `Annotated` says about it."""
    return (hint.__origin__, list(hint.__metadata__)) if typing.get_origin(hint) is Annotated else (hint, [])


def words_of(hint: Any, notes: list[Any]) -> str:
    """A type in words, with its range."""
    kind, more = parts(hint)
    notes = [*notes, *more]
    if typing.get_origin(kind) in (Union, UnionType):
        return " or ".join(words_of(each, notes) for each in typing.get_args(kind) if each is not NoneType)
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"any number of: {words_of(typing.get_args(kind)[0], notes)}"
    if kind is bool:
        return "on or off"
    name = {int: "integer", float: "number", str: "text", Path: "path"}[kind]
    limits = [limit for note in notes for limit in [note, *getattr(note, "metadata", [])]]
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [
        f"{words} {getattr(limit, sign):g}"
        for limit in limits
        for sign, words in signs.items()
        if getattr(limit, sign, None) is not None
    ]
    return ", ".join([name, *dict.fromkeys(said)])


def written(value: Any) -> str:
    """A default as the command line takes it."""
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value == () or value == "":
        return "unset" if value is None else "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return f"`{' '.join(map(str, value))}`"
    return f"`{value.as_posix() if isinstance(value, Path) else value}`"


def default_of(item: dataclasses.Field[Any]) -> Any:
    """Default of a field, also where pydantic wraps it; MISSING where there is none."""
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    inner = getattr(item.default, "default", item.default)
    return dataclasses.MISSING if type(inner).__name__ == "PydanticUndefinedType" else inner


def flags_of(name: str, plain: bool, given: Any, notes: list[Any]) -> tuple[str, ...]:
    """Every spelling of an option; `plain` are booleans that are either given or not."""
    first = f"--{name}".replace("_", "-")
    negated = (f"--{'.'.join([*name.split('.')[:-1], 'no-' + name.split('.')[-1]])}".replace("_", "-"),)
    aliases = tuple(alias for note in notes for alias in getattr(note, "aliases", None) or ())
    return (first, *(negated if given is bool and not plain else ()), *aliases)


def options_of(made: type, groups: list[Group], prefix: str = "") -> Iterator[Option]:
    """Options of a class of fields, in order; sections within it become groups of their own."""
    hints = typing.get_type_hints(made, include_extras=True)
    for item in dataclasses.fields(made):
        kind, notes = parts(hints[item.name])
        if tyro.conf.Suppress in notes:
            continue
        text = help_texts(made).get(item.name, "")
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            renamed = next(
                (note.name for note in notes if getattr(note, "name", None) is not None), item.name
            )
            inner = f"{prefix}{renamed}." if renamed and tyro.conf.OmitArgPrefixes not in notes else prefix
            group = groups[0] if not renamed else Group(f"Section `{prefix}{item.name}`", text)
            groups += [] if group is groups[0] else [group]
            group.options.extend(options_of(kind, groups, inner))
            continue
        positional = tyro.conf.Positional in notes
        many = typing.get_origin(kind) is tuple
        plain = tyro.conf.FlagCreatePairsOff in notes
        flags = flags_of(prefix + item.name, plain, kind, notes)
        shape = next((note.metavar for note in notes if getattr(note, "metavar", None)), "")
        yield Option(
            flags=(item.name.upper() + (" ..." if many else ""),) if positional else flags,
            kind="given or not" if plain else shape or words_of(kind, notes),
            default=written(default_of(item)),
            text=text,
            positional=positional,
        )


def groups_of(made: type) -> list[Group]:
    """The tables of a verb: its own options first, then one group per section."""
    groups = [Group("Options")]
    own = list(options_of(made, groups))
    positional = [option for option in own if option.positional]
    inner = groups[0].options
    required = [option for option in inner if option.default == "required"]
    others = [option for option in inner if option not in required]
    mine = [option for option in own if not option.positional]
    groups[0].options = [*positional, *required, *others, *mine]
    return groups


def signature(verb: str) -> str:
    """Head of the Python function of a verb, one parameter a line."""
    name = PYTHON.get(verb, verb)
    found = inspect.signature(getattr(zs, name))
    shown, starred = [], False
    for each in found.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*,")
            starred = True
        star = {each.VAR_KEYWORD: "**", each.VAR_POSITIONAL: "*"}.get(each.kind, "")
        starred = starred or star == "*"
        default = "" if each.default is each.empty else f" = {each.default!r}"
        shown.append(f"{star}{each.name}: {each.annotation}{default},")
    body = "".join(f"    {line}\n" for line in shown)
    return f"zs.{name}(\n{body}) -> {found.return_annotation}"


def python_section(verb: str) -> str:
    """The Python function of a verb, with its docstring."""
    if verb in WITHOUT_FUNCTION:
        return f"## From Python\n\n{WITHOUT_FUNCTION[verb]}\n"
    said = inspect.getdoc(getattr(zs, PYTHON.get(verb, verb))) or ""
    return f"## From Python\n\n```python\n{signature(verb)}\n```\n\n{wrapped(said)}\n"


def wrapped(text: str) -> str:
    """Paragraphs in lines of at most `WIDTH` columns; indented ones are examples and stay."""
    paragraphs = [
        each
        if each.startswith("    ")
        else textwrap.fill(" ".join(each.split()), WIDTH, break_on_hyphens=False)
        for each in text.split("\n\n")
    ]
    return "\n\n".join(paragraphs)


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.steps", 300), ... of a config as plain values."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def recipes_section() -> str:
    """What each recipe changes, as a table."""
    usual = dict(leaves(to_dict(AdaptConfig(target="TARGET"))))
    made = {
        name: dict(leaves(to_dict(recipe(name, "TARGET", generator=HOME_OF_RECIPE.get(name, "portraits")))))
        for name in RECIPES
    }
    hidden = ("run.recipe", "generator")
    rows = []
    for name, default in usual.items():
        changed = [values[name] for values in made.values()]
        if name in hidden or all(value == default for value in changed):
            continue
        flag = name.removeprefix("run.")
        cells = [written(value) if value != default else "" for value in changed]
        rows.append(f"| `--{flag.replace('_', '-')}` | {' | '.join([written(default), *cells])} |")
    heads = ["option", "default", *(f"`{name}`" for name in RECIPES)]
    about = (
        "A recipe supplies the defaults; options override it. An empty cell is the default. `portraits` and "
        "`portraits-ddpm` are taken for the generators of these names, `diffusionclip`, `air-paper` and "
        "`svl-paper` for these methods elsewhere, and `ipl-paper` for every other generator. `style`, "
        "`identity`, `in-domain` and `far` build on what suits the generator; they are shown for `portraits`."
    )
    table = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *rows]
    return f"## Recipes\n\n{wrapped(about)}\n\n" + "\n".join(table) + "\n"


EXAMPLES: dict[str, tuple[str, ...]] = {
    "adapt": (
        'zeroshift adapt --target "pencil sketch"                  # the built-in portraits, method ipl',
        "zeroshift adapt --target zombie --method nada --seed 1 --out runs/zombie",
        "zeroshift adapt --target neon --until converged           # stop when it no longer gets better",
        "zeroshift adapt --target neon --dry-run                   # what would move, what memory it needs",
        "zeroshift adapt --generator portraits-ddpm --target cartoon --out runs/cartoon",
        'zeroshift adapt --target "pencil sketch:0.6" zombie:0.4   # a mixture of two domains',
    ),
    "sample": (
        "zeroshift sample runs/zombie --seeds 0-15                 # grid.png and one PNG per seed",
        "zeroshift sample runs/zombie --strength 0.5 --out halfway # half-way between source and target",
        "zeroshift sample hf:google/ddpm-celebahq-256 --seeds 0-3 --steps 50",
    ),
    "translate": (
        "zeroshift translate runs/cartoon me.png --strength 0.7",
        "zeroshift translate runs/cartoon me.png --unseen 8        # a picture unlike the model's own",
        "zeroshift translate runs/cartoon me.png --mix runs/undead --schedule 200:1,0 0:0.3,0.7",
    ),
    "convert": (
        "zeroshift convert runs/zombie zombie.pt --to rosinality   # the same weights in another layout",
        "zeroshift convert runs/zombie zombie.onnx --to onnx --part full",
        "zeroshift convert celeba_hq.ckpt celeba_hq.safetensors --to safetensors",
    ),
    "push": (
        "zeroshift push runs/zombie owner/zombie --dry-run card    # shows what would be uploaded",
        "zeroshift push runs/zombie owner/zombie",
    ),
    "evaluate": (
        "zeroshift evaluate runs/zombie --csv zombie.csv",
        "zeroshift evaluate runs/ffhq-sketch --judge openai/clip-vit-base-patch16 --reference sketches/",
    ),
    "compare": (
        "zeroshift compare --methods nada ipl coop --targets zombie neon --seeds 0 1 2 --out runs/compare",
        'zeroshift compare --methods ipl "few words=ipl:mapper.words=2" --targets neon --out runs/words',
    ),
    "portraits": (
        'zeroshift portraits render --domain "pencil sketch" --out sketches   # ten people to learn from',
        "zeroshift portraits render --domain zombie --seeds 0-3 --size 256 --out zombies",
    ),
    "inspect": ("zeroshift inspect ffhq.pkl", "zeroshift inspect hf:google/ddpm-celebahq-256 --json"),
    "doctor": ("zeroshift doctor",),
}

MORE = {
    "adapt": "[Your own generator and CLIP](../models.md), [diffusion models](../diffusion.md), [runs]"
    "(../runs.md), [FFHQ at 1024 px](../ffhq-1024.md), [pitfalls](../pitfalls.md).",
    "sample": "[Runs](../runs.md), [diffusion models](../diffusion.md).",
    "translate": "[Diffusion models](../diffusion.md).",
    "convert": "[Export and the hub](../export.md), [your own generator](../models.md).",
    "push": "[Export and the hub](../export.md).",
    "evaluate": "[Metrics](../metrics.md): what each one means, and where it misleads.",
    "compare": "[Comparing methods](../compare.md): how methods are written, and how to read the page. Every "
    "option of [`zeroshift adapt`](adapt.md) may be added; it then goes to all runs.",
    "portraits": "[Where the domains come from](../metrics.md).",
    "inspect": "[Your own generator and CLIP](../models.md).",
    "doctor": "",
}
"""Verb -> pages that say more."""


def page(made: type) -> str:
    """The page of a verb."""
    verb, groups = made.__name__.lower(), groups_of(made)
    given = [option.flags[0] for option in groups[0].options if option.positional]
    needed = [f"{option.flags[0]} ..." for option in groups[0].options if option.default == "required"]
    needed = [each for each in needed if each.startswith("--")]
    usage = " ".join(["zeroshift", verb, *given, *needed, "[OPTIONS]"])
    lines = [
        f"# zeroshift {verb}",
        "",
        "*Generated by `docs/generate.py` from the code; `make docs` renews it.*",
        "",
        wrapped(summary(made)),
        "",
        "```",
        usage,
        "```",
        "",
        "For example:",
        "",
        "```",
        *EXAMPLES[verb],
        "```",
        "",
    ]
    lines += [wrapped(f"See also: {MORE[verb]}"), ""] if MORE[verb] else []
    for group in groups:
        lines += [f"## {group.title}", "", *([wrapped(group.text), ""] if group.text else [])]
        lines += ["| option | takes | default | meaning |", "|---|---|---|---|"]
        lines += [*(option.row for option in group.options), ""]
    if verb == "adapt":
        lines += recipes_section().splitlines() + [""]
    return "\n".join([*lines, python_section(verb)])


def methods_table() -> str:
    """Methods x kinds of generator, as `config/methods.py` has them."""
    rows = [
        " | ".join([f"| `{name}`", row.summary, *("yes" if kind in row.on else "no" for kind in KINDS)])
        + " |"
        for name, row in METHODS.items()
    ]
    return "\n".join(["| method | what it does | StyleGAN2 | diffusion |", "|---|---|---|---|", *rows])


def verbs_table() -> str:
    """Command, Python function and what it does."""
    rows = []
    for made in VERBS:
        verb = made.__name__.lower()
        function = "" if verb in WITHOUT_FUNCTION else f"`zs.{PYTHON.get(verb, verb)}`"
        first = re.split(r"[.:] ", summary(made))[0].rstrip(".")
        before = f"| [`{verb}`](docs/verbs/{verb}.md) | {function} | "
        rows.append(before + (first if len(before + first) <= WIDTH - 2 else first.split(",")[0]) + " |")
    return "\n".join(["| command | Python | what it does |", "|---|---|---|", *rows])


def filled(text: str, name: str, table: str) -> str:
    """A page with a table in the place of that name."""
    before, mark, rest = text.partition(f"<!-- generated: {name} -->\n")
    assert mark and "<!-- end -->" in rest, f"README.md has no place for the table of {name}"
    return before + mark + table + "\n" + rest[rest.index("<!-- end -->") :]


def pages() -> dict[Path, str]:
    """File -> its text, for every page and for README.md."""
    made = {DOCS / "verbs" / f"{each.__name__.lower()}.md": page(each) for each in VERBS}
    readme = README.read_text(encoding="utf-8")
    for name, table in {"methods": methods_table(), "commands": verbs_table()}.items():
        readme = filled(readme, name, table)
    return made | {README: readme}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(DOCS.parent))
