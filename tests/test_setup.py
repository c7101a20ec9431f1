"""Installing: the pins agree everywhere, setup_conda_env.sh keeps its word, CI runs what the README says."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash")


def read_requirements(name: str) -> list[Requirement]:
    lines = [line.split(" #")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def pinned_version(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned"
    return Version(specifier.version)


# --- Pins -------------------------------------------------------------------------------------------------


def test_the_environment_is_named_FF_and_has_the_pins_of_the_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip_section,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert [Requirement(line) for line in pip_section] == read_requirements("requirements.txt")
    assert environment["name"] == "FF" and "pip" in environment["dependencies"]


@pytest.mark.parametrize("python_version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-demo.txt"])
def test_every_python_gets_exactly_one_pin_of_each_package(name, python_version):
    requirements = read_requirements(name)
    applying = [r for r in requirements if not r.marker or r.marker.evaluate({"python_version": python_version})]
    for requirement in applying:
        pinned_version(requirement)
    assert sorted(r.name for r in applying) == sorted({r.name for r in requirements})
    assert name == "requirements.txt" or "-r requirements.txt" in (ROOT / name).read_text().splitlines()


def test_requirements_name_every_package_the_code_imports():
    """OpenCV and Gradio are needed for digits of one's own alone, TensorBoard where it is asked for."""
    imported = set()
    for file in [ROOT / "main.py", *(ROOT / "src").glob("**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
        for name, its_file in (("gradio", "demo.py"), ("cv2", "finding.py")):
            assert name not in imported or file.name == its_file
            imported.discard(name)
    import_names = {"hydra-core": "hydra", "pyyaml": "yaml", "pillow": "PIL"}
    required = {import_names.get(r.name, r.name) for r in read_requirements("requirements.txt")}
    assert imported - set(sys.stdlib_module_names) - {"src"} <= required


@pytest.mark.parametrize("requirement", read_requirements("requirements.txt"), ids=str)
def test_installed_packages_fit_the_pins(requirement):
    if requirement.marker and not requirement.marker.evaluate():
        pytest.skip("for another Python")
    installed, pinned = Version(metadata.version(requirement.name)), pinned_version(requirement)
    assert installed.major == pinned.major
    if requirement.name in ("torch", "torchvision"):
        assert installed.base_version == pinned.base_version  # the build (+cpu, +cu130) is the user's choice


def test_cuda_builds_were_looked_up_for_the_pinned_torch():
    (torch,) = [r for r in read_requirements("requirements.txt") if r.name == "torch"]
    assert f"torch {pinned_version(torch)} is built for" in (ROOT / "setup_conda_env.sh").read_text()


# --- setup_conda_env.sh, run for real with a stand-in for conda on the PATH -------------------------------

# The stand-in keeps the environments it was told to create, and notes how it was called.
STAND_IN = r"""
constraints=${PIP_CONSTRAINT:+$(echo $(cat "$PIP_CONSTRAINT"))}
echo "$TOOL|$*|$PWD|$PIP_EXTRA_INDEX_URL|$PIP_CONSTRAINT|$constraints|$MAMBA_ALWAYS_YES" >> "$STATE/calls"
if [ "$*" = "env list" ]; then
    printf '%s\n' "# conda environments:" "#" "base  *  /somewhere" "FF-old   /somewhere/envs/FF-old"
    [ ! -e "$STATE/environments" ] || echo "FF       /somewhere/envs/FF"
    exit "${LIST_STATUS:-0}"
fi
[ "${STATUS:-0}" != 0 ] || echo > "$STATE/environments"
exit "${STATUS:-0}"
"""


# How a stand-in was called, and with which of the environment's variables.
Call = namedtuple("Call", "tool arguments directory index constraints_file constraints always_yes")


class Setup:
    """Runs setup_conda_env.sh on a PATH that holds a few system tools and the stand-ins, nothing else."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "bin"
        self.project = folder / "a checkout"  # scripts tend to break at blanks
        self.project.mkdir()
        for name in ("setup_conda_env.sh", "environment.yml"):
            shutil.copy(ROOT / name, self.project)
        self.path.mkdir()
        for name in ("awk", "basename", "cat", "dirname", "mktemp", "rm", "sed", "uname"):
            (self.path / name).symlink_to(shutil.which(name))

    def add_tool(self, name: str, folder: str = "bin", body: str = STAND_IN) -> Path:
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(f"#!{BASH}\nTOOL={name}\n{body}\n")
        path.chmod(0o755)
        return path

    def run(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
        finished = subprocess.run(
            [BASH, str(self.project / "setup_conda_env.sh"), *arguments],
            env={"PATH": str(self.path), "STATE": str(self.folder), **environment},
            cwd=self.folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert finished.returncode == status, finished.stderr
        return finished

    def calls(self) -> list[Call]:
        log = self.folder / "calls"
        return [Call(*line.split("|")) for line in log.read_text().splitlines()] if log.exists() else []

    def installing_calls(self) -> list[Call]:
        return [call for call in self.calls() if call.arguments != "env list"]


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


@pytest.mark.parametrize(
    ("tools", "create"), [("conda mamba micromamba", "env create"), ("mamba", "env create"), ("micromamba", "create")]
)
def test_creates_the_environment_and_updates_it_the_second_time(setup, tools, create):
    """With conda, if there is one."""
    for tool in reversed(tools.split()):
        setup.add_tool(tool)
    first, _ = setup.run(), setup.run()
    arguments = [f"{create} -n FF -f environment.yml", "env update -n FF -f environment.yml --prune"]
    assert [call.arguments for call in setup.installing_calls()] == arguments
    assert {call.tool for call in setup.calls()} == {tool}
    for call in setup.installing_calls():
        assert Path(call.directory) == setup.project
        assert call.always_yes == "true"  # no question left unanswered
        assert call.index == call.constraints == ""  # without an argument pip is left alone
    assert f"{tool} activate FF" in first.stdout and "python -m main" in first.stdout
    assert ("source activate FF" in first.stdout) == (tool == "conda")


@pytest.mark.parametrize(
    ("argument", "build"), [("cpu", "cpu"), ("12.6", "cu126"), ("13.0", "cu130"), ("13.2", "cu132")]
)
def test_the_argument_selects_the_build_in_the_one_installing_call(setup, argument, build):
    """And keeps what the user has told pip, also where TMPDIR has a blank."""
    setup.add_tool("conda")
    pins = {r.name: pinned_version(r) for r in read_requirements("requirements.txt")}
    setup.run(argument)
    setup.run(argument, PIP_EXTRA_INDEX_URL="https://example.org/simple", TMPDIR=str(setup.project))
    created, updated = setup.installing_calls()
    assert created.index == f"https://download.pytorch.org/whl/{build}"
    assert updated.index == f"https://example.org/simple {created.index}"
    for call in (created, updated):
        assert call.constraints == f"torch=={pins['torch']}+{build} torchvision=={pins['torchvision']}+{build}"
        assert " " not in call.constraints_file, "for pip, two files"
        assert not Path(call.constraints_file).exists(), "left behind"


@pytest.mark.parametrize("arguments", [["11"], ["cu126"], ["--cuda"], ["12.6 13.0"], ["cpu", "12.6"]], ids=" ".join)
def test_a_bad_argument_is_one_clear_line_and_nothing_is_called(setup, arguments):
    setup.add_tool("conda")
    finished = setup.run(*arguments, status=1)
    (line,) = finished.stderr.splitlines()
    assert "cpu" in line and "CUDA" in line
    assert finished.stdout == "" and setup.calls() == []


def test_help_lists_the_choices(setup):
    said = setup.run("--help").stdout
    assert all(choice in said for choice in ("cpu", "12.6", "13.0", "13.2"))


def test_says_what_to_do_where_no_tool_is_found(setup):
    (line,) = setup.run(status=1).stderr.splitlines()
    assert all(word in line for word in ("conda", "mamba", "micromamba", "install", "README"))


@pytest.mark.parametrize(("variable", "tool"), [("CONDA_EXE", "conda"), ("MAMBA_EXE", "micromamba")])
def test_finds_the_program_behind_a_shell_function(setup, variable, tool):
    program = setup.add_tool(tool, folder="off the path")
    assert f"{tool} activate FF" in setup.run(**{variable: str(program)}).stdout
    assert len(setup.installing_calls()) == 1


@pytest.mark.parametrize("variable", ["STATUS", "LIST_STATUS"])
def test_a_failing_tool_fails_the_script(setup, variable):
    setup.add_tool("conda")
    assert "ready" not in setup.run("cpu", status=7, **{variable: "7"}).stdout
    for call in setup.installing_calls():
        assert not Path(call.constraints_file).exists(), "left behind"


def test_macos_has_one_build_and_no_cuda(setup):
    setup.add_tool("conda")
    setup.add_tool("uname", body="echo Darwin")
    assert "macOS" in setup.run("12.6", status=1).stderr
    assert setup.calls() == []
    setup.run("cpu")
    (call,) = setup.installing_calls()
    assert call.constraints == ""  # the wheel there carries no build in its version


# --- The scripts and CI -----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["setup_conda_env.sh", ".ci/run", "benchmarks/measure_results.sh"])
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.prefix, "bin")))
    assert shellcheck, "shellcheck comes with requirements-dev.txt"
    finished = subprocess.run([shellcheck, str(ROOT / script)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout


def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    commands = dict(re.findall(r"^(run|test)_command='(.*)'$", ci, flags=re.MULTILINE))
    assert commands["run"].endswith("&& python -m main")
    assert commands["test"].endswith("&& python -m pytest")
    readme_lines = [line.strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    for command in commands.values():
        assert command in readme_lines
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_pip_is_told_that_this_is_not_a_package():
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-e", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 1 and "error: there is nothing to install but requirements.txt" in done.stderr
