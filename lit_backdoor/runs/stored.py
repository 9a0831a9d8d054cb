"""The options that a run directory holds, as plain data."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from lit_backdoor.runs.file_names import CONFIG, continued


class _PlainLoader(yaml.SafeLoader):
    """Reads what Lightning writes of Python's own types, such as a tuple, as plain data; nothing is called."""


def _as_plain(loader: yaml.SafeLoader, kind: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else node.value


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _as_plain)


def load(path: Path) -> Any:
    """What a YAML or JSON file holds."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, _PlainLoader)
    except (UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged or no file of a run ({' '.join(str(error).split())[:200]})") from None


def config_files(run_dir: Path) -> list[Path]:
    """The configurations of a run: of its first start, and of each time that it was continued, in order."""
    pattern = re.escape(continued(CONFIG, 0)).replace("0", r"(\d+)")
    later = {int(match[1]): path for path in run_dir.iterdir() if (match := re.fullmatch(pattern, path.name))}
    first = run_dir / CONFIG
    return [*([first] if first.is_file() else []), *(later[step] for step in sorted(later))]
