"""What jsonargparse says about a wrong option, in one line: which option, which value, what is allowed."""

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from lit_backdoor.limits import in_words

UNKNOWN = re.compile(
    r"unrecognized arguments: (?:--)?(?P<argument>[^\s=]*)"
    r"|does not accept option '(?P<key>[^']*)'"
    r"|Option '(?P<nested>[^']*)' is not accepted"
)
VALUE = re.compile(
    r"(?:Got|Given) value: ?(?P<listed>[^\n]*)"
    r"|(?:base 10|to float): '(?P<unread>[^']*)'"
    r"|Not of type \w+: (?P<outside>.*) (?:does not conform|not an)"
)
LONGEST = 600


def unknown_option(message: str) -> str | None:
    """The option that the message says does not exist, if it says so."""
    match = UNKNOWN.search(message)
    return match and next(group for group in match.groups() if group is not None)


def in_one_line(message: str, types: Mapping[str, Any], owner: str = "") -> str:
    """Shorten a message to what helps.

    Args:
        types: All options that could have been meant, with their types.
        owner: What stands before the option's name, as ``RunCheckpoint.``, where the message leaves it out.
    """
    if name := unknown_option(message):
        return f"{owner}{name}: there is no such option{suggestion(name, types)}"
    if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        names = re.findall(r"'([^']*)'", choice[2])
        return f"subcommand: there is no '{choice[1]}'{suggestion(choice[1], names)}; allowed: {', '.join(names)}"
    if missing := re.search(r'Key "([^"]*)" not found in namespace', message):
        group = missing[1].rsplit(".", 1)[0]
        return f"{group}: this holds no options; a mapping with {missing[1]} and others is expected"
    if foreign := re.match(r"Unexpected config: ?(.*)", message, re.DOTALL):
        return f"config: '{' '.join(foreign[1].split())[:80]}' is no configuration; allowed: YAML with named options"
    if broken := re.match(r"Problems parsing config: ?(.*)", message, re.DOTALL):
        return f"config: this is no YAML: {' '.join(broken[1].split())}"[:LONGEST]
    key = re.match(r'Parser key "([^"]*)":', message)
    reason = message[key.end() :] if key else message
    reason = _class_problem(reason) or _wrong_value(reason, types.get(key[1]) if key else None) or reason
    line = " ".join(reason.split())
    line = f"{owner}{key[1]}: {line}" if key else line
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def suggestion(name: str, options: Iterable[str]) -> str:
    """Words that name the closest option, compared by its whole name or by its last part."""
    by_end: dict[str, str] = {}
    for option in options:
        by_end.setdefault(option.rsplit(".", 1)[-1], option)
        by_end[option] = option
    close = difflib.get_close_matches(name, by_end, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(name.rsplit(".", 1)[-1], by_end, n=1, cutoff=0.6)
    return f"; did you mean {by_end[close[0]]}?" if close else ""


def _class_problem(text: str) -> str | None:
    """What is wrong with a class that an option names, among the objections of all types that it might have been."""
    if problem := re.search(r"Problem with given class_path '([^']*)':\s*(?:-\s*)?(.*)", text):
        path, reason = problem.groups()
        module, _, name = path.rpartition(".")
        missing = "has no attribute" in reason
        names = [member for member in dir(import_module(module)) if member[0].isupper()] if missing else []
        return f"'{path}' can't be used: {reason}{suggestion(name, names)}"
    own = re.search(r"^\s*- (?!Expected |Not a valid|Not of type |Does not |a class |a dict )(.*)$", text, re.MULTILINE)
    if own is None or "Subtypes:" not in text:
        return None
    value = re.search(r"Given value: ([^\n]{1,60})$", text)
    return own[1] if value is None or value[1] in own[1] else f"'{value[1]}' is not allowed; {own[1]}"


def _wrong_value(text: str, kind: Any) -> str | None:
    """``VALUE is not allowed; allowed: ...``, for a value that is not of the type ``kind``."""
    values = [next(group for group in match.groups() if group is not None) for match in VALUE.finditer(text)]
    if not values or kind is None:
        return None
    value = "null" if values[-1] == "None" else f"'{' '.join(values[-1].split())}'"
    return f"{value} is not allowed; allowed: {in_words(kind)}"
