"""`llama-lite new`: a package to start from, made of the templates that ship."""

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

import click

from llama_stack_lite.errors import InvalidRequest, StackError

from .installed import plugins

TEMPLATES = resources.files("llama_stack_lite.templates")
# template -> the file it becomes
PROVIDER = {
    "provider-pyproject.toml.tmpl": "pyproject.toml",
    "provider-{api}.py.tmpl": "{module}.py",
    "provider-{api}-test.py.tmpl": "test_{module}.py",
}
AGENT = {
    "agent-pyproject.toml.tmpl": "pyproject.toml",
    "agent.yaml.tmpl": "{module}.yaml",
    "agent.py.tmpl": "{module}.py",
    "agent-test.py.tmpl": "test_{module}.py",
}
APIS = ["inference", "safety", "tools"]


@click.group()
def new() -> None:
    """Start a package of your own: a provider, or an agent."""


@new.command()
@click.argument("api", type=click.Choice(APIS))
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the package.  [default: llama-stack-lite-NAME]",
)
def provider(api: str, name: str, into: Path | None) -> None:
    """Write a provider package that works: one file, its entry point, and its conformance test."""
    names = _names(api, name)
    folder = into or Path(names["package"])
    _write(folder, PROVIDER, names)
    click.echo(f"Wrote {folder}. Next:\n  pip install -e '{folder}[test]'\n  pytest {folder}")


@new.command()
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the package.  [default: NAME-agent]",
)
def agent(name: str, into: Path | None) -> None:
    """Write a package with an agent that works: its YAML, a function that it calls, and its tests."""
    _check_name("an agent", name)
    package = f"{name}-agent"
    names = {"name": name, "package": package, "module": package.replace("-", "_")}
    folder = into or Path(package)
    _write(folder, AGENT, names)
    click.echo(
        f"Wrote {folder}. Next:\n  pip install -e '{folder}[test]'\n  pytest {folder}\n"
        f"  llama-lite run starter {folder / names['module']}.yaml    and in another window\n"
        f"  {package} 'Where is order 7?'"
    )


def _write(folder: Path, templates: dict[str, str], names: dict[str, str]) -> None:
    """Fill the templates in; raises `StackError` where something is there already."""
    if folder.exists() and any(folder.iterdir()):
        raise StackError(f"{folder} is not empty; name another folder by --into")
    folder.mkdir(parents=True, exist_ok=True)
    for template, target in templates.items():
        text = (TEMPLATES / template.format(**names)).read_text("utf-8")
        (folder / target.format(**names)).write_text(Template(text).substitute(names), encoding="utf-8")


def _check_name(what: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InvalidRequest(
            f"`{name}` is no name for {what}: small letters, digits and single hyphens make one"
        )


def _names(api: str, name: str) -> dict[str, str]:
    """The provider's name in every spelling that a template uses; raises `InvalidRequest` for a bad one."""
    _check_name("a provider", name)
    if any(plugin.name == name for plugin in plugins() if plugin.api == api):
        raise InvalidRequest(f"there is an {api} provider `{name}` already; choose another name")
    class_name = "".join(part.capitalize() for part in name.split("-"))
    text = (TEMPLATES / f"provider-{api}.py.tmpl").read_text("utf-8")
    if re.search(rf"\b{class_name}\b", text) or keyword.iskeyword(class_name):
        raise InvalidRequest(
            f"class `{class_name}` would hide a name that the file uses; choose another name"
        )
    return {
        "api": api,
        "name": name,
        "class_name": class_name,
        "package": f"llama-stack-lite-{name}",
        "module": f"llama_stack_lite_{name.replace('-', '_')}",
    }
