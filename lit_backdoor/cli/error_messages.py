"""What jsonargparse says about a wrong option, in one line: which option, which value, what is allowed."""

import difflib
import re
from collections.abc import Iterable
from importlib import import_module

UNKNOWN = re.compile(
    r"unrecognized arguments: (?:--)?(?P<argument>[^\s=]*)"
    r"|does not accept option '(?P<key>[^']*)'"
    r"|Option '(?P<nested>[^']*)' is not accepted"
)
TYPES = {
    "NoneType": "null",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list, such as [1, 2]",
    "dict": "a mapping",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number, 0 or more",
}
LONGEST = 600


def in_one_line(message: str, options: Iterable[str], owner: str = "") -> str:
    """The message, shortened to what helps.

    Args:
        options: all that could have been meant.
        owner: what stands before the option's name, as ``RunCheckpoint.``, where the message leaves it out.
    """
    if unknown := UNKNOWN.search(message):
        name = next(group for group in unknown.groups() if group is not None)
        return f"{owner}{name}: there is no such option{_suggestion(name, options)}"
    if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        names = re.findall(r"'([^']*)'", choice[2])
        return f"subcommand: there is no '{choice[1]}'{_suggestion(choice[1], names)}; allowed: {', '.join(names)}"
    if missing := re.search(r'Key "([^"]*)" not found in namespace', message):
        group = missing[1].rsplit(".", 1)[0]
        return f"{group}: this holds no options; a mapping with {missing[1]} and others is expected"
    if foreign := re.match(r"Unexpected config: ?(.*)", message, re.DOTALL):
        return f"config: '{' '.join(foreign[1].split())[:80]}' is no configuration; allowed: YAML with named options"
    if broken := re.match(r"Problems parsing config: ?(.*)", message, re.DOTALL):
        return f"config: this is no YAML: {' '.join(broken[1].split())}"[:LONGEST]
    key = re.match(r'Parser key "([^"]*)":', message)
    rest = message[key.end() :] if key else message
    said = _reason(rest) or _types(rest) or rest
    line = " ".join(said.split())
    line = f"{owner}{key[1]}: {line}" if key else line
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def _suggestion(name: str, options: Iterable[str]) -> str:
    """Words that name the closest option, compared by its whole name or by its last part."""
    by_end: dict[str, str] = {}
    for option in options:
        by_end.setdefault(option.rsplit(".", 1)[-1], option)
        by_end[option] = option
    close = difflib.get_close_matches(name, by_end, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(name.rsplit(".", 1)[-1], by_end, n=1, cutoff=0.6)
    return f"; did you mean {by_end[close[0]]}?" if close else ""


def _reason(text: str) -> str | None:
    """The one objection among many (one per type that would have been allowed) that is about this value."""
    if found := re.search(r"Problem with given class_path '([^']*)':\s*(?:-\s*)?(.*)", text):
        path, problem = found.groups()
        module, _, name = path.rpartition(".")
        names = [one for one in dir(import_module(module)) if one[0].isupper()] if "has no attribute" in problem else []
        return f"'{path}' can't be used: {problem}{_suggestion(name, names)}"
    own = re.search(r"^\s*- (?!Expected |Not a valid|Not of type |Does not |a class |a dict )(.*)$", text, re.MULTILINE)
    if own is None or "Subtypes:" not in text:
        return None
    value = re.search(r"Given value: ([^\n]{1,60})$", text)
    return own[1] if value is None or value[1] in own[1] else f"'{value[1]}' is not allowed; {own[1]}"


def _types(text: str) -> str | None:
    """``VALUE is not allowed; allowed: ...`` from the types that jsonargparse lists."""
    found = re.findall(r"(?:Expected an? |Not of type )(.*?)(?:\. Got value:|: |$)", text, re.MULTILINE)
    expected = " ".join(found)
    values = re.findall(r"(?:Got|Given) value: ?([^\n]*)", text) or re.findall(r"with base 10: '([^']*)'", text)
    if not expected or not values:
        return None
    allowed = []
    for of_class, literals, restricted in re.findall(
        r"<class '(?:[\w.]+\.)?(\w+)'>|Literal\[([^\]]*)\]|(\w+Int)\b", expected
    ):
        kind = of_class or restricted
        allowed.append(TYPES.get(kind, kind) if kind else literals.replace("'", ""))
    told = ", ".join(dict.fromkeys(allowed)) or " ".join(expected.split())
    return f"'{' '.join(values[-1].split())}' is not allowed; allowed: {told}"
