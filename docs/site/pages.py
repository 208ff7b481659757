"""Pages of the documentation site that are made of the code, and links that hold in the repository and on the site.

A hook of MkDocs (mkdocs.yml). The pages of `docs/` are read in the repository too, so they link to files of it; here a
link to a module leads to its reference, and one to a recipe's README to its page.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import docstring_parser
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from jax_speechlm.cli.commands import COMMANDS, GROUPS
from jax_speechlm.core.config import Config
from jax_speechlm.recipes.experiment import Experiment

ROOT = Path(__file__).parents[2]
PACKAGES = ("jax_speechlm", "data_pipelines")
TEXTS = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in `docs/`."""
    for source, page in _texts().items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for folder, modules in _modules().items():
        files.append(File.generated(config, _reference(folder), content=_of_modules(folder, modules)))
    files.append(File.generated(config, "reference/index.md", content=_of_packages()))
    files.append(File.generated(config, "reference/commands.md", content=_of_commands()))
    files.append(File.generated(config, "reference/settings.md", content=_of_settings()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links to files of the repository into links to pages of the site."""
    source = {site: source for source, site in _texts().items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if page.file.src_uri.startswith("reference/"):
        return markdown

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        target = os.path.normpath(str(PurePosixPath(source).parent / target))
        if not (ROOT / target).exists():
            raise PluginError(f"{source} links to {target}, which does not exist")
        if (site := _site(target)) is None:
            return text
        return f"[{text}]({os.path.relpath(site, PurePosixPath(page.file.src_uri).parent)}{anchor})"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):  # code is left as it is
        parts += [_LINK.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + _LINK.sub(link, markdown[end:])


def _site(target: str) -> str | None:
    """Returns the path on the site of a file or folder of the repository; None if it has no page."""
    if target in _texts():
        return _texts()[target]
    if target == "jax_speechlm/recipes":
        return "recipes/demo.md"
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target.startswith(PACKAGES):
        folder = target if (ROOT / target).is_dir() else str(PurePosixPath(target).parent)
        return _reference(folder)
    return None


def _texts() -> dict[str, str]:
    """Returns the pages that are written outside `docs/`: file to page."""
    recipes = sorted((ROOT / "jax_speechlm/recipes").glob("*/README.md"))
    return TEXTS | {str(path.relative_to(ROOT)): f"recipes/{path.parent.name}.md" for path in recipes}


def _modules() -> dict[str, list[str]]:
    """Returns the modules of each folder of the packages, in order, without those that are private or empty."""
    folders: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT)
            if path.read_text() and not any(part.startswith("_") and part != "__init__.py" for part in name.parts):
                module = str(name.with_suffix("")).replace("/", ".").removesuffix(".__init__")
                folders.setdefault(str(name.parent), []).append(module)
    return folders


def _reference(folder: str) -> str:
    return f"reference/{folder.replace('/', '.')}.md"


def _of_modules(folder: str, modules: list[str]) -> str:
    return f"# {folder.replace('/', '.')}\n\n" + "\n".join(f"::: {module}\n" for module in modules)


def _of_packages() -> str:
    """Lists the folders of modules with the first line of their docstring."""
    rows = []
    for folder in _modules():
        text = (ROOT / folder / "__init__.py").read_text() if (ROOT / folder / "__init__.py").exists() else ""
        summary = re.match(r'"""(.*?)(?:"""|\n)', text)
        name = folder.replace("/", ".")
        rows.append(f"| [`{name}`]({name}.md) | {summary[1] if summary else ''} |\n")
    return "# Modules\n\n| package | content |\n|---|---|\n" + "".join(rows)


def _of_commands() -> str:
    rows = ""
    for group, heading in GROUPS.items():
        rows += f"\n## {heading}\n"
        for name, command in COMMANDS.items():
            if command.group == group:
                summary = command.summary[0].upper() + command.summary[1:]
                rows += f"\n### {name}\n\n{summary}.\n\n```\n{command.example}\n```\n"
    return "# Commands\n\n`jax-speechlm COMMAND --help` explains every option.\n" + rows


def _of_settings() -> str:
    """Lists the settings of an experiment and of all parts that it may have."""
    parts = dict.fromkeys(_configs(Experiment))
    text = (
        "# Settings\n\nThe records that an experiment is made of. On the command line a setting is an option by its "
        "dotted name, `--optimizer.schedule.peak 1e-3`, and `--model.kind` and the like choose among the records of a "
        "part.\n"
    )
    for part in parts:
        docstring = docstring_parser.parse(part.__doc__ or "")
        described = {name.strip(): each.description for each in docstring.params for name in each.arg_name.split(",")}
        rows = "".join(
            f"| `{name}` | {_default(field)} | {_cell(described.get(name) or _choices(field.annotation))} |\n"
            for name, field in part.model_fields.items()
        )
        kind = part.model_fields.get("kind")
        named = f" (`{kind.default}`)" if kind is not None and isinstance(kind.default, str) else ""
        summary = docstring.short_description or ""
        text += f"\n## {part.__name__}{named} {{ #{part.__name__.lower()} }}\n\n{summary}\n\n"
        text += f"| setting | default | |\n|---|---|---|\n{rows}"
    return text


def _configs(part: Any, seen: set[type] | None = None) -> Iterator[type[Config]]:
    """Yields a record and all records that its settings may be, depth first."""
    seen = set() if seen is None else seen
    if isinstance(part, type) and issubclass(part, Config):
        if part in seen:
            return
        seen.add(part)
        yield part
        for field in part.model_fields.values():
            yield from _configs(field.annotation, seen)
    for each in get_args(part):
        yield from _configs(each, seen)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    return _linked(type(field.default)) if isinstance(field.default, Config) else f"`{field.default!r}`"


def _choices(annotation: Any) -> str:
    """Names the records that a setting may be."""
    if isinstance(annotation, type):
        return _linked(annotation) if issubclass(annotation, Config) else ""
    return ", ".join(filter(None, map(_choices, get_args(annotation))))


def _linked(part: type[Config]) -> str:
    return f"[{part.__name__}](#{part.__name__.lower()})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
