"""What the repository promises about itself."""

import re
import subprocess
import sys

from tests.helpers import CONFIGS, ROOT


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_package_is_cheap_to_import() -> None:
    assert run("import sys, lit_backdoor; print('torch' in sys.modules)").strip() == "False"


def test_the_task_and_the_functions_need_no_lightning() -> None:
    code = "import sys, lit_backdoor.task, lit_backdoor.functional; print([m for m in sys.modules if m in {names}])"
    assert run(code.replace("{names}", "('lightning', 'transformer_lens', 'matplotlib')")).strip() == "[]"


def test_callbacks_know_neither_the_module_nor_the_datamodule() -> None:
    for path in (ROOT / "lit_backdoor" / "callbacks").glob("*.py"):
        imported = re.findall(r"^from lit_backdoor\.(\w+)", path.read_text(), re.MULTILINE)
        assert not {"module", "datamodule", "task", "model", "cli"} & set(imported), path


def test_what_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"configs/(\w+)\.yaml", readme):
        assert (CONFIGS / f"{name}.yaml").exists(), name
    for path in re.findall(r"\((docs/[\w./]+)\)", readme):
        assert (ROOT / path).exists(), path
    assert len([line for line in readme.splitlines() if line.endswith("-m pytest")]) == 1


def test_constraints_pin_everything_and_name_no_host() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines
