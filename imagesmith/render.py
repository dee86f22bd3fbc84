"""Jinja2 in recipes: strict, sandboxed, and with errors that name the nearest right word."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import jinja2
import jinja2.sandbox

from imagesmith.errors import nearest
from imagesmith.kinds import Rendered, placeholder, secrets_in
from imagesmith.password import hashed

_EXPRESSION = re.compile(r"\s*\{\{(?P<inner>(?:(?!\}\}|\{\{).)*)\}\}\s*", re.S)
_MARK = re.compile("\ue010(\\d+)\ue011")
_UNDEFINED = re.compile(r"'(\w+)' is undefined")


_COMPILED = 256
"""How many compiled templates and expressions are kept."""


class Secret:
    """Stands for a secret in expressions: it can be put into a string whole, and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return placeholder(self.name)

    __html__ = __str__


class Renderer:
    """Renders strings and template files with a recipe's variables."""

    def __init__(self, variables: Mapping[str, object]) -> None:
        self._variables = dict(variables)
        self._inline, self._files = _shared(comments=False), _shared(comments=True)

    def value(self, text: str) -> object:
        """Render a string; one that is a single expression keeps the expression's type. Raises ValueError."""
        if "{{" not in text and "{%" not in text:
            return text
        try:
            whole = _EXPRESSION.fullmatch(text)
            if whole is None:
                return self._checked(_template(self._inline, text).render(self._variables))
            found = _expression(self._inline, whole["inner"])(**self._variables)
            if isinstance(found, jinja2.Undefined):
                found._fail_with_undefined_error()
            return self._checked(str(found)) if isinstance(found, (Secret, str)) else found
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"bad template: {error.message}") from None
        except jinja2.UndefinedError as error:
            raise ValueError(self._undefined(error)) from None
        except ValueError:
            raise
        except Exception as error:  # whatever an expression raises is the recipe's fault
            raise ValueError(f"bad template: {error}") from None

    def file(self, path: Path) -> str:
        """Render a template file. Raises ValueError with the file's line."""
        try:
            source = path.read_text(encoding="utf-8")
            return self._checked(_template(self._files, source).render(self._variables))
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"{path}:{error.lineno}: bad template: {error.message}") from None
        except jinja2.UndefinedError as error:
            raise ValueError(f"{path}:{_line(error)}: {self._undefined(error)}") from None
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{path}:{_line(error)}: bad template: {error}") from None

    def mapped(self, path: Path) -> Rendered:
        """Render a template file, and tell where each line comes from. Raises ValueError with the file's line."""
        return self._mapped(path, self._variables)

    def own(self, name: str, variables: Mapping[str, object]) -> Rendered:
        """Render one of our own templates, which sees ``variables`` and nothing of the recipe. Raises ValueError."""
        return self._mapped(own_template(name), variables)

    def _mapped(self, path: Path, variables: Mapping[str, object]) -> Rendered:
        renderer = self if variables is self._variables else _Trusting(variables)
        text = renderer.file(path)
        marked, lines = _marked(renderer, path), list[int]()
        if _MARK.sub("", marked) == text:
            for part in marked.split("\n"):
                found = _MARK.findall(part)
                lines.append(int(found[-1]) if found else lines[-1] if lines else 1)
        return Rendered(text, path, tuple(lines))

    def marked(self, source: str) -> str:
        """Render a template's source in which every line of plain text begins with a mark that tells its number."""
        parts = []
        for number, kind, value in self._files.lex(source):
            lines = enumerate(value.split("\n"), number)
            marked = "\n".join(f"\ue010{place}\ue011{line}" for place, line in lines)
            parts.append(marked if kind == "data" else value)
        return self._files.from_string("".join(parts)).render(self._variables)

    def _checked(self, text: str) -> str:
        for name in re.findall("\ue000([^\ue000\ue001]*)\ue001", text):
            if not isinstance(self._variables.get(name), Secret):
                raise ValueError("a secret can only be used whole, without filters")
        return text

    def _undefined(self, error: jinja2.UndefinedError) -> str:
        message = str(error.message or error)
        match = _UNDEFINED.search(message)
        return f"unknown variable '{match[1]}'{nearest(match[1], self._variables)}" if match else message


class _Trusting(Renderer):
    """Renders our own templates: from options, where a secret's place-holder stands as text, and once more, when it
    is revealed, from the secret itself. So filters may escape it.
    """

    def __init__(self, variables: Mapping[str, object]) -> None:
        super().__init__(variables)
        self._files = _environment(comments=True)
        self._files.filters["quote"] = lambda value: shlex.quote(str(value))
        self._files.filters["crypt"] = lambda value, user: hashed(str(value), user)

    def _checked(self, text: str) -> str:
        return text


def _environment(*, comments: bool) -> jinja2.Environment:
    # In a recipe's strings '{#' is the shell's ${#name}, so comments are only for template files.
    start, end = ("{#", "#}") if comments else ("{#\ue002", "\ue002#}")
    environment = jinja2.sandbox.SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, comment_start_string=start,
        comment_end_string=end,
    )  # fmt: skip
    environment.filters["quote"] = _quote
    environment.filters["crypt"] = _crypt
    return environment


_shared = lru_cache(_environment)


@lru_cache(_COMPILED)
def _template(environment: jinja2.Environment, source: str) -> jinja2.Template:
    """A compiled template: compiling one takes as long as fifty renderings, and many recipes have the same texts."""
    return environment.from_string(source)


@lru_cache(_COMPILED)
def _expression(environment: jinja2.Environment, source: str) -> Callable[..., object]:
    return environment.compile_expression(source, undefined_to_none=False)


def _quote(value: object) -> str:
    """One word of a shell's command line."""
    return shlex.quote(_no_secret(value))


def _crypt(value: object, user: str) -> str:
    """A password's hash, as in /etc/shadow."""
    return hashed(_no_secret(value), user)


def _no_secret(value: object) -> str:
    """A value that holds no secret: else its place-holder would be escaped, and not what comes in its place."""
    if isinstance(value, Secret) or secrets_in(str(value)):
        raise ValueError("a secret can only be used whole, without filters")
    return str(value)


def page(name: str, variables: Mapping[str, object]) -> str:
    """Render one of our own HTML pages. What ``variables`` hold is text, and is escaped, but for what is called style.

    Control characters, and names of files that are no UTF-8, are shown as far as they can be.
    """

    def visible(value: object) -> object:
        if not isinstance(value, str) or hasattr(value, "__html__"):
            return value
        return re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", value)

    loader = jinja2.FileSystemLoader(own_template(name).parent)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader,
        finalize=visible,
    )  # fmt: skip
    return environment.get_template(Path(name).name).render(variables)


def own_template(name: str) -> Path:
    """A file of ``templates/``, installed inside the package or beside it in a clone."""
    package = Path(__file__).parent
    inside = package / "templates" / name
    return inside if inside.exists() else package.parent / "templates" / name


def _marked(renderer: Renderer, path: Path) -> str:
    try:
        return renderer.marked(path.read_text(encoding="utf-8"))
    except Exception:  # marks can be in the way, of whatever a template does: then there are no line numbers
        return ""


def _line(error: BaseException) -> int:
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
